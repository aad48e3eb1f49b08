"""The coordinator process: turns messages into events of the rounds, and carries out their commands."""
