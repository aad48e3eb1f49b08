"""A coordinator's file as text: what is the same for every method."""

from __future__ import annotations


def fleet_file(more: str) -> str:
    """Return the file with the keys and, after them, the tables that a test is about."""
    return f"""
run_id = "run-1"
fleet = "lab"
broker_url = "mqtt://localhost:1883"
artifact_url = "http://localhost/"
artifact_digest = "00"
num_devices = 3
{more}
"""
