"""A linear head on frozen features: what is asked, checked and combined. Devices only run forward passes."""
