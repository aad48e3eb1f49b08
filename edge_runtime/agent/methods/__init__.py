"""What a device does for each kind of work: a room for each method, and a registry by the type of its work."""
