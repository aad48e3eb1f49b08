"""The methods: rounds, schedulers, aggregation, pruning. Arithmetic only: nothing here reads or writes files."""
