"""Small data that a small model can learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

WORDS = {"sea": ["sea", "wind", "blue", "rises", "falls"], "land": ["cat", "dog", "red", "sleeps", "runs"]}
"""Two classes that are easy to tell apart, in words that the tiny models know."""

Copy = Callable[..., Path]
"""Type of the fixture that copies prepared runs."""


def write_rows(path: Path, num_rows: int, seed: int) -> Path:
    """JSON lines of short texts of two classes, and the site where each was written."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            label = list(WORDS)[number % 2]
            text = " ".join(rng.choice(WORDS[label], size=8).tolist())
            file.write(json.dumps({"text": text, "label": label, "key": f"site-{number % 5}"}) + "\n")
    return path
