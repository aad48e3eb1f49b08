"""Frozen weights of one plan: kept in the type that they are stored in, or as float32; read as float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class FrozenWeights(Mapping[str, Array]):
    """Weights by name. What is kept as float32 is read as it lies; anything else is converted each time.

    Args:
        held: float32 or float16, C-contiguous; read-only where they are views of the base blob.
    """

    def __init__(self, held: Mapping[str, npt.NDArray[Any]]) -> None:
        self._held = dict(held)

    def __getitem__(self, name: str) -> Array:
        """Float32, C-contiguous."""
        return self._held[name].astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the manifest."""
        return iter(self._held)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._held)

    def held(self, name: str) -> npt.NDArray[Any]:
        """A weight as it is kept."""
        return self._held[name]

    def is_float32(self, name: str) -> bool:
        """Whether reading a weight costs nothing."""
        return self._held[name].dtype == np.float32

    def rows(self, name: str, indices: npt.NDArray[np.int64]) -> Array:
        """Rows of a matrix, float32 ``[len(indices), columns]``."""
        return self._held[name][indices].astype(np.float32, copy=False)

    def write(self, name: str, out: Array) -> None:
        """Write a weight to an array of its shape."""
        np.copyto(out, self._held[name])

    def put(self, name: str, value: npt.NDArray[Any]) -> None:
        """Keep another array for a weight."""
        self._held[name] = value
