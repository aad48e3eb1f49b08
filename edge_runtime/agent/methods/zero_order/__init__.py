"""Zero-order tuning on a device: it runs forward graphs alone, sends scalars, and rebuilds theta from the log."""
