"""Is everything there that a device needs? One finding for each question, with what to do next.

A package that is missing is a finding, not a crash: modules here import nothing but the standard library and what of
this package needs no other, and each question loads what it asks of.
"""
