"""Benchmarks: the device engine against its peers."""
