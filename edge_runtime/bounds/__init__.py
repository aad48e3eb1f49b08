"""Bounds on values from outside: types of fields, limits, text for a terminal."""
