"""Tuning by forward passes alone: what is asked, how scalars combine, and the log that devices catch up by."""
