"""The library of a board: compact models on plain onnxruntime, with the base install."""

from __future__ import annotations

from typing import Final

from edge_runtime.inference import CompactModel

__all__ = ["CompactModel", "load_compact"]

load_compact: Final = CompactModel.open
"""Load a compact model from its directory; see :meth:`edge_runtime.inference.CompactModel.open`."""
