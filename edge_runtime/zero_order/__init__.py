"""Zero-order tuning without a model: its noise, its parts, and the steps that scalars say again, bit by bit."""
