"""Checks of a board for everything that a device needs: one finding for each question, with the next step.

A missing package is a finding, not a crash. So modules here import only the standard library and those modules of
``edge_runtime`` that need no other package. Each question imports the packages that it checks.
"""
