"""A pretrained model becomes an artifact."""
