"""Compact models on the device: classify and generate, without torch."""
