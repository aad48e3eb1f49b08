"""What serves devices: the coordinator, its storage and services, evaluation, and the report of a run."""
