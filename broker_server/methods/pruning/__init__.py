"""Pruning over the run: schedule, importance from devices, settings."""
