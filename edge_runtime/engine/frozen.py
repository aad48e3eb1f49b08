"""Frozen weights of one plan: held in their stored type or as float32, and read as float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.formats.plan import Indices
from edge_runtime.formats.quantization import Quantized

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Held = npt.NDArray[Any] | Quantized
"""A weight in memory: float32 or float16, or a matrix in fewer bits."""


class FrozenWeights(Mapping[str, Array]):
    """Weights by name. Float32 weights are read in place; all others are converted each time.

    Args:
        held: weights by name; arrays are C-contiguous, and views of the base blob are read-only.
    """

    def __init__(self, held: Mapping[str, Held]) -> None:
        self._held = dict(held)

    def __getitem__(self, name: str) -> Array:
        """A weight as a float32 array, C-contiguous."""
        return as_float32(self._held[name])

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the manifest."""
        return iter(self._held)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        """Return whether a weight exists; nothing is converted."""
        return name in self._held

    def held(self, name: str) -> Held:
        """A weight in the type in which it is held."""
        return self._held[name]

    def is_float32(self, name: str) -> bool:
        """Return whether a weight is held as float32, so it is read without a conversion."""
        held = self._held[name]
        return not isinstance(held, Quantized) and held.dtype == np.float32

    def table(self, name: str, token_ids: Int64) -> tuple[Array, Int64]:
        """The distinct rows of a matrix for some tokens, and the tokens as indices of these rows.

        Args:
            name: name of a matrix ``[V, H]``.
            token_ids: tokens ``[B, L]``, below V.

        Returns:
            Rows, float32 ``[U, H]``, and indices, int64 ``[B, L]``, below U.
        """
        tokens, indices = np.unique(token_ids, return_inverse=True)
        return as_float32(take(self._held[name], tokens, 0)), indices.reshape(token_ids.shape)

    def write(self, name: str, out: Array) -> None:
        """Write a weight to an array of its shape."""
        held = self._held[name]
        if isinstance(held, Quantized):
            held.write(out)
        else:
            np.copyto(out, held)

    def put(self, name: str, value: Held) -> None:
        """Replace the array of a weight."""
        self._held[name] = value


class BlockWeights:
    """Float32 weights for one block at a time: float32 weights in place, others in memory that all blocks share.

    Args:
        weights: weights of the model.
        prefixes: prefix of the names of each block.
    """

    def __init__(self, weights: FrozenWeights, prefixes: Sequence[str]) -> None:
        self._weights = weights
        self._prefixes = prefixes
        self._converted: dict[str, Array] = {}
        self._loaded: int | None = None

    def prefix(self, layer: int | None) -> str:
        """Prefix of a block's names; empty for embedding and head (``layer`` None)."""
        return "" if layer is None else self._prefixes[layer]

    def readable(self, name: str, prefix: str) -> Array:
        """Return the array from which a stage reads a weight; in shared memory it is valid after :meth:`load`."""
        if not prefix or self._weights.is_float32(name):
            return self._weights[name]
        shape, local = self._weights.held(name).shape, name.removeprefix(prefix)
        size = math.prod(shape)
        if local not in self._converted:
            largest = max(self._weights.held(p + local).size for p in self._prefixes if p + local in self._weights)
            self._converted[local] = np.empty(largest, np.float32)
            self._loaded = None
        return self._converted[local][:size].reshape(shape)

    def load(self, layer: int) -> None:
        """Convert the weights of a block that are not float32, unless they were the last to be converted."""
        if self._loaded == layer:
            return
        prefix = self._prefixes[layer]
        for local in self._converted:
            if not self._weights.is_float32(prefix + local):
                self._weights.write(prefix + local, self.readable(prefix + local, prefix))
        self._loaded = layer

    def reload(self) -> None:
        """Convert the weights anew at the next :meth:`load`, after a weight was replaced."""
        self._loaded = None


def as_float32(held: Held) -> Array:
    """A held weight as float32; a float32 array is returned unchanged."""
    return held.float32() if isinstance(held, Quantized) else held.astype(np.float32, copy=False)


def take(held: Held, indices: Indices, axis: int) -> Held:
    """The part of a held weight at ``indices`` of an axis, as a copy."""
    return held.take(indices, axis) if isinstance(held, Quantized) else np.take(held, indices, axis=axis)
