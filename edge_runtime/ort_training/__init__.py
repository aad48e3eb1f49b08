"""A second engine: the models that onnxruntime-training makes, run by its own API. See docs/ort-training.md."""
