"""Compact models on the device: classify and generate, without torch."""

from edge_runtime.inference.description import CompactInfo, read_info
from edge_runtime.inference.model import CompactModel, Latency, Prediction

__all__ = ["CompactInfo", "CompactModel", "Latency", "Prediction", "read_info"]
