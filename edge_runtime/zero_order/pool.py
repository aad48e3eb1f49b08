"""The moves of weights along the noise of a pool of seeds, piece by piece, for tuning of all weights.

FedKSeed (arXiv 2312.06353): K numbers describe a model after any number of rounds, and one pass over the used seeds
makes it. All arithmetic is in float32 and in one order, so results are the same bits on every platform.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.seed_pool import Noise, SeedPool, coefficients_of
from edge_runtime.zero_order.noise import draw

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

PIECE: Final = 1 << 15
"""Elements that are moved at a time: noise and its sum stay in the processor's cache."""

_EXACT: Final = frozenset({"float32", "float16"})


@dataclasses.dataclass(frozen=True, slots=True)
class Direction:
    """A sum of noise of seeds of a pool: ``sum over j of weight_j * z_j``, from left to right."""

    seed: int
    """Key of the noise."""
    noise: Noise
    weights: Sequence[tuple[int, float]]
    """Index of each seed, and the weight of its noise, a float32 value."""

    @classmethod
    def of(cls, pool: SeedPool) -> Direction:
        """The direction of a pool: seeds by ascending index, without coefficients of 0."""
        coefficients = coefficients_of(pool)
        used = np.flatnonzero(coefficients)
        return cls(pool.seed, pool.noise, [(int(number), float(coefficients[number])) for number in used])

    def subtract_from(self, values: Array, tensor: int, out: Array, begin: int = 0) -> None:
        """Write ``values - direction``.

        Args:
            values: elements of a tensor, float32 ``[n]``, C-contiguous.
            tensor: index of the tensor, see :func:`tensor_indices`.
            out: float32 ``[n]``; may be ``values``.
            begin: index of the first element within the tensor.
        """
        for first in range(0, values.size, PIECE):
            piece = slice(first, min(first + PIECE, values.size))
            np.subtract(values[piece], self._sum(tensor, begin + first, piece.stop - first), out=out[piece])

    def subtract_from_rows(self, values: Array, rows: Int64, tensor: int) -> None:
        """Subtract from some rows of a matrix ``[V, H]``, in place; the same bits as for all of it.

        Args:
            values: float32 ``[U, H]``.
            rows: their numbers, ``[U]``, ascending, below V.
            tensor: the matrix's index.
        """
        if not self.weights or not rows.size:
            return
        width = values.shape[1]
        pieces = rows // max(1, PIECE // width)
        bounds = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), rows.size]
        for begin, end in itertools.pairwise(bounds):
            first, last = int(rows[begin]), int(rows[end - 1])
            total = self._sum(tensor, first * width, (last + 1 - first) * width).reshape(-1, width)
            values[begin:end] -= total[rows[begin:end] - first]

    def _sum(self, tensor: int, begin: int, size: int) -> Array:
        """Of a tensor's elements from ``begin`` on."""
        total = np.zeros(size, np.float32)
        for number, weight in self.weights:
            drawn = draw(self.noise, self.seed, 0, 0, number, tensor, size, begin)
            drawn *= np.float32(weight)
            total += drawn
        return total


def tensor_indices(manifest: Manifest) -> dict[str, int]:
    """Indices of all tuned tensors, which select their noise: weights in the manifest's order, then dense tensors.

    Raises:
        TensorError: a weight is stored in too few bits for small changes.
    """
    for spec in manifest.tensors:
        if spec.dtype not in _EXACT:
            msg = f"{spec.name} is stored as {spec.dtype}, and all weights are to be tuned: export with float32 weights"
            raise TensorError(msg)
    names = [spec.name for spec in manifest.tensors] + [spec.name for spec in manifest.dense]
    return {name: index for index, name in enumerate(names)}


def moved(values: Array, tensor: int, direction: Direction) -> Array:
    """Move a tensor along a pool's direction; without seeds return it unchanged.

    Args:
        values: initial value, float32, any shape.
        tensor: index of the tensor.
        direction: direction of the pool.
    """
    if not direction.weights:
        return values
    out = np.empty(values.shape, np.float32)
    direction.subtract_from(np.ascontiguousarray(values).reshape(-1), tensor, out.reshape(-1))
    return out


def moved_dense(manifest: Manifest, tensors: Mapping[str, Array], pool: SeedPool) -> dict[str, Array]:
    """The dense tensors that a pool moved, by name.

    Args:
        manifest: manifest of the artifact.
        tensors: initial tensors by name; others are ignored.
        pool: pool of the model.

    Raises:
        TensorError: see :func:`tensor_indices`.
    """
    indices, direction = tensor_indices(manifest), Direction.of(pool)
    return {spec.name: moved(tensors[spec.name], indices[spec.name], direction) for spec in manifest.dense}


def seeds_of_step(seed: int, device: int, round_number: int, step: int, num_seeds: int, count: int) -> list[int]:
    """Seeds that a device draws from a pool in a step; the server draws the same, so the device sends only scalars.

    Args:
        seed: seed of the pool.
        device: number of the device, 0 to 2**64 - 1.
        round_number: round of the assignment.
        step: step of the assignment, 1-based.
        num_seeds: K.
        count: number of draws, with replacement; chances are equal within 2**-51.

    Returns:
        Indices of seeds; an index may occur twice.
    """
    counter = np.array([0, round_number, step, 1], np.uint64)
    raw = np.random.Philox(key=np.array([seed, device], np.uint64), counter=counter).random_raw(count)
    return [int(number) % num_seeds for number in raw]


def device_number(device_id: str) -> int:
    """The number of a device, 0 to 2**64 - 1: the first 8 bytes of the SHA-256 of its id, little-endian."""
    return int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:8], "little")


def step_weights(scalars: Array, learning_rate: float) -> Array:
    """Weights of the noise of a step's seeds: ``float32(lr / P) * rho``.

    Args:
        scalars: rho, float32 ``[..., P]``.
        learning_rate: learning rate of the step.
    """
    return scalars * np.float32(learning_rate / scalars.shape[-1])
