"""Artifact, adapter and plan become a compact model."""
