"""Model families: stages, prune groups, LoRA targets, cut points."""
