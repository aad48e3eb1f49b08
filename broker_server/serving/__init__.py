"""The part of the server that devices talk to: coordinator, storage and services, evaluation, report of a run."""
