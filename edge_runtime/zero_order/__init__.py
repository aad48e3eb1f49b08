"""Zero-order tuning without a model: noise, parts, and the steps, which follow from scalars bit by bit."""
