"""Experiments on one machine: ``fedspine run`` and ``fedspine compare``."""
