"""A linear head on frozen features: assignments, checks of replies, combination. Devices only run forward passes."""
