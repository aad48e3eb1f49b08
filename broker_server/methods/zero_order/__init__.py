"""Tuning by forward passes alone: assignments, the combination of scalars, and the log that devices replay."""
