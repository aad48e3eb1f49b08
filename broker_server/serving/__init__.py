"""The server of devices: coordinator, storage, services, evaluation and the report of a run."""
