"""How much is pruned when, and which units: schedule, importance from devices, settings."""
