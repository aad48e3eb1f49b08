"""Checks whether a board has all that a device needs: one finding for each question, with the next step.

A package that is missing is a finding, not a crash: modules here import nothing but the standard library and what of
this package needs no other, and each question loads what it asks of.
"""
