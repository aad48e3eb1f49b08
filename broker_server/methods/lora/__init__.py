"""First-order training of LoRA factors on slices of the model: assignments, checks of replies, aggregation."""
