"""The device's side of methods: a room for each, and a registry by the type of its work."""
