"""What the system knows of a model family: stages, prune groups, LoRA targets, cut points."""
