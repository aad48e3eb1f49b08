"""Zero-order tuning on a device: forward graphs alone, scalars up, theta rebuilt from the log instead of pulled."""
