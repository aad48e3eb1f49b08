"""First-order training of LoRA factors on a slice of the model."""
