"""Formats of files and blobs: manifest, plan, ranking, adapter, tensors."""
