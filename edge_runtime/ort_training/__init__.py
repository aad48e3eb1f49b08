"""A second engine: models for onnxruntime-training, run through its own API. See docs/ort-training.md."""
