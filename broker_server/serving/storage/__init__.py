"""What a run keeps in its directory: registry, rounds, updates, adapters, the event log, and the lock on it."""
