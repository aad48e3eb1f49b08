"""First-order and zero-order devices in one run: the kind of work of each device, and the combination of replies."""
