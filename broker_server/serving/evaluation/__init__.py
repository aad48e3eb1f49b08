"""The server's own evaluation of a model on held-out examples."""
