"""The exporter's contenders in a benchmark."""
