"""Frozen weights of one plan: kept in the type that they are stored in, or as float32; read as float32."""

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
"""A weight as it is kept: float32 or float16, or a matrix in fewer bits."""


class FrozenWeights(Mapping[str, Array]):
    """Weights by name. Float32 weights are read in place; all others are converted each time.

    Args:
        held: arrays are C-contiguous; read-only where they are views of the base blob.
    """

    def __init__(self, held: Mapping[str, Held]) -> None:
        self._held = dict(held)

    def __getitem__(self, name: str) -> Array:
        """Float32, C-contiguous."""
        return as_float32(self._held[name])

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the manifest."""
        return iter(self._held)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        """Return whether a weight is there; nothing is converted."""
        return name in self._held

    def held(self, name: str) -> Held:
        """A weight as it is kept."""
        return self._held[name]

    def is_float32(self, name: str) -> bool:
        """Return whether a weight is float32, so that reading it costs nothing."""
        held = self._held[name]
        return not isinstance(held, Quantized) and held.dtype == np.float32

    def table(self, name: str, token_ids: Int64) -> tuple[Array, Int64]:
        """Rows of a matrix for some tokens, each once, and the tokens as indices of those.

        Args:
            name: of a matrix ``[V, H]``.
            token_ids: ``[B, L]``, below V.

        Returns:
            Float32 ``[U, H]`` and int64 ``[B, L]``, below U.
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
        """Keep another array for a weight."""
        self._held[name] = value


class BlockWeights:
    """Weights as float32 for one block at a time: where they lie, if that is float32; else in memory that blocks share.

    Args:
        weights: of the model.
        prefixes: of each block's names.
    """

    def __init__(self, weights: FrozenWeights, prefixes: Sequence[str]) -> None:
        self._weights = weights
        self._prefixes = prefixes
        self._converted: dict[str, Array] = {}
        self._loaded: int | None = None

    def prefix(self, layer: int | None) -> str:
        """Of a block's names; none for those of embedding and head, ``layer`` None."""
        return "" if layer is None else self._prefixes[layer]

    def readable(self, name: str, prefix: str) -> Array:
        """Return the array from which a stage reads a weight: in the shared memory, after :meth:`load`."""
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
        """Convert anew: a weight is another array now."""
        self._loaded = None


def as_float32(held: Held) -> Array:
    """A kept weight as float32: itself, if it is."""
    return held.float32() if isinstance(held, Quantized) else held.astype(np.float32, copy=False)


def take(held: Held, indices: Indices, axis: int) -> Held:
    """The part of a kept weight at ``indices`` of an axis; a copy."""
    return held.take(indices, axis) if isinstance(held, Quantized) else np.take(held, indices, axis=axis)
