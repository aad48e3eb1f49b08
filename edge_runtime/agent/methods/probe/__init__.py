"""A linear head on features of the frozen model: forward passes only."""
