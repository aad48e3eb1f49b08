"""The coordinator: rounds, scheduler, aggregation, registry, broker, artifact server, and the whole run."""
