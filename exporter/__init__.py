"""Pretrained model to artifact; artifact plus adapters to compact inference model."""

import edge_runtime  # noqa: F401 - keeps onnxruntime silent, so it comes before that
