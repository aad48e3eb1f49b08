"""Weights that are the same under every version of transformers: drawn by numpy, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sun",
    "moon",
    "sea",
    "wind",
    "runs",
    "sleeps",
    "shines",
    "rises",
    "falls",
    "sings",
    "red",
    "blue",
    "old",
    "new",
    "and",
    "or",
]
"""Of the tokenizers; their ids begin with 4."""
IDS = np.random.default_rng(6).integers(4, 24, (1, 24))
"""Tokens whose logits are compared, int64 ``[1, 24]``."""


def seeded_weights(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, npt.NDArray[np.float32]]:
    """Values for parameters of these names and shapes."""
    rng = np.random.default_rng(5)
    out = {}
    for name, shape in sorted(shapes):
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        out[name] = (centre + rng.normal(0.0, 0.25, shape)).astype(np.float32)
    return out
