"""Pretrained model to artifact; artifact plus adapters to compact inference model."""
