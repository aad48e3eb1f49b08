"""The files of a run: registry, rounds, updates, adapters, the event log, and the lock on its directory."""
