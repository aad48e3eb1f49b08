"""First-order training of LoRA factors on slices of the model: what is asked, checked and combined."""
