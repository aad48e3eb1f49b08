"""What the exporter's packages take part with in a benchmark."""
