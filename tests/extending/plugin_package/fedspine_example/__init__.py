"""A package that adds a method, a scheduler, an aggregation rule, a model family and a callback to FedSpine."""
