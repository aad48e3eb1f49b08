"""The methods: rounds, schedulers, aggregation, pruning. Almost all of it is arithmetic, without files or network."""
