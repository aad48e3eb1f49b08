"""Models for onnxruntime-training, made of an artifact. See docs/ort-training.md."""
