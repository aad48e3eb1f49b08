"""Weights moved along the noise of a pool of seeds, piece by piece: what tuning of all weights is made of.

FedKSeed (arXiv 2312.06353): a model is K numbers, whatever the number of rounds, and to make it is one pass over the
seeds that were used. All arithmetic is in float32 and in one order, so results are the same bits on every platform.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
    """Numbers of seeds, and what their noise counts: float32 values."""

    @classmethod
    def of(cls, pool: SeedPool) -> Direction:
        """The direction from a pool to where weights began: by ascending number, without coefficients of 0."""
        coefficients = coefficients_of(pool)
        used = np.flatnonzero(coefficients)
        return cls(pool.seed, pool.noise, [(int(number), float(coefficients[number])) for number in used])

    def subtract_from(self, values: Array, tensor: int, out: Array, begin: int = 0) -> None:
        """Write ``values - direction``.

        Args:
            values: of a tensor, float32 ``[n]``, C-contiguous.
            tensor: its index, see :func:`tensor_indices`.
            out: float32 ``[n]``; may be ``values``.
            begin: elements of the tensor before them.
        """
        for first in range(0, values.size, PIECE):
            piece = slice(first, min(first + PIECE, values.size))
            total = np.zeros(piece.stop - first, np.float32)
            for number, weight in self.weights:
                drawn = draw(self.noise, self.seed, 0, 0, number, tensor, total.size, begin + first)
                drawn *= np.float32(weight)
                total += drawn
            np.subtract(values[piece], total, out=out[piece])


def tensor_indices(manifest: Manifest) -> dict[str, int]:
    """Numbers that name the noise of all tuned tensors: frozen weights in the manifest's order, then dense tensors.

    Raises:
        TensorError: a weight is stored in so few bits that no small change of it can be.
    """
    for spec in manifest.tensors:
        if spec.dtype not in _EXACT:
            msg = f"{spec.name} is stored as {spec.dtype}, and all weights are to be tuned: export with float32 weights"
            raise TensorError(msg)
    names = [spec.name for spec in manifest.tensors] + [spec.name for spec in manifest.dense]
    return {name: index for index, name in enumerate(names)}


def moved(values: Array, tensor: int, direction: Direction) -> Array:
    """A tensor that a pool moved; itself, where that did not.

    Args:
        values: where it began, float32, any shape.
        tensor: its index.
        direction: of the pool.
    """
    if not direction.weights:
        return values
    out = np.empty(values.shape, np.float32)
    direction.subtract_from(np.ascontiguousarray(values).reshape(-1), tensor, out.reshape(-1))
    return out


def moved_rows(values: Array, rows: Int64, tensor: int, direction: Direction) -> Array:
    """Some rows of a matrix less a direction.

    Args:
        values: the matrix, float32 ``[V, H]``.
        rows: ``[U]``, below V.
        tensor: its index.
        direction: what is subtracted.

    Returns:
        Float32 ``[U, H]``, a copy.
    """
    out = values[rows]
    if direction.weights:
        for row, number in zip(out, rows.tolist(), strict=True):
            direction.subtract_from(row, tensor, row, number * row.size)
    return out


def moved_dense(manifest: Manifest, tensors: Mapping[str, Array], pool: SeedPool) -> dict[str, Array]:
    """The dense tensors that a pool moved, by name.

    Args:
        manifest: of the artifact.
        tensors: where they began, among others.
        pool: of the model.

    Raises:
        TensorError: see :func:`tensor_indices`.
    """
    indices, direction = tensor_indices(manifest), Direction.of(pool)
    return {spec.name: moved(tensors[spec.name], indices[spec.name], direction) for spec in manifest.dense}


def seeds_of_step(seed: int, device: int, round_number: int, step: int, num_seeds: int, count: int) -> list[int]:
    """Seeds of a pool that a device draws in a step: the server knows them too, so only scalars go up.

    Args:
        seed: of the pool.
        device: a number that is the device's own, 0 to 2**64 - 1.
        round_number: of the assignment.
        step: of the assignment, 1-based.
        num_seeds: K.
        count: how many are drawn, each of all, with equal chances but for 2**-51 at most.

    Returns:
        Their numbers; one may be there twice.
    """
    counter = np.array([0, round_number, step, 1], np.uint64)
    raw = np.random.Philox(key=np.array([seed, device], np.uint64), counter=counter).random_raw(count)
    return [int(number) % num_seeds for number in raw]


def device_number(device_id: str) -> int:
    """A number of a device's own, 0 to 2**64 - 1: the first 8 bytes of its name's SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:8], "little")


def step_weights(scalars: Array, learning_rate: float) -> Array:
    """Weights of the noise of a step's seeds: ``float32(lr / P) * rho``.

    Args:
        scalars: rho, float32 ``[..., P]``.
        learning_rate: of the step.
    """
    return scalars * np.float32(learning_rate / scalars.shape[-1])
