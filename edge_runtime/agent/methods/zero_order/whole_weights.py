"""All weights of a model in one copy, and memory for the perturbed weights of one block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.zero_order.pool import Direction, moved_rows, tensor_indices

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class WholeWeights(FrozenWeights):
    """Tuned weights: they hold theta, and the model reads theta - direction.

    Theta is the only whole copy. The perturbed weights of a block are written, when the block runs, to memory that all
    blocks share. The perturbed rows of a word embedding are made when they are looked up. The other weights outside the
    blocks are bound once, and have a second copy.

    Args:
        artifact: artifact with the initial weights.
        direction: subtracted from the initial weights to give theta.
        before_tensor: called before each tensor is made; raises to stop.

    Attributes:
        theta: weights by name.

    Raises:
        TensorError: a weight is stored in too few bits.
        ArtifactCorruptedError: the base weights do not match the manifest.
    """

    def __init__(self, artifact: Artifact, direction: Direction, before_tensor: Callable[[], None]) -> None:
        manifest = artifact.manifest
        self._indices = tensor_indices(manifest)
        self._direction = Direction(direction.seed, direction.noise, ())
        self._in_blocks = {spec.name for spec in manifest.tensors if spec.layer is not None}
        theta: dict[str, Array] = {}
        for spec in manifest.tensors:
            before_tensor()
            value = np.array(artifact.weight(spec), np.float32, order="C")
            direction.subtract_from(value.reshape(-1), self._indices[spec.name], value.reshape(-1))
            theta[spec.name] = value
            artifact.release()
        super().__init__(theta)
        self.theta = theta
        outside = theta.keys() - self._in_blocks - manifest.looked_up
        self._outside = {name: theta[name].copy() for name in theta if name in outside}

    def move(self, direction: Direction) -> None:
        """Subtract a direction from theta, in place."""
        for name, value in self.theta.items():
            flat = value.reshape(-1)
            direction.subtract_from(flat, self._indices[name], flat)

    def read_less(self, direction: Direction) -> None:
        """Let the model read theta - direction from now on."""
        self._direction = direction
        for name, out in self._outside.items():
            direction.subtract_from(self.theta[name].reshape(-1), self._indices[name], out.reshape(-1))

    def __getitem__(self, name: str) -> Array:
        """A weight outside the blocks, in memory that is never moved."""
        return self._outside[name] if name in self._outside else self.theta[name]

    def is_float32(self, name: str) -> bool:
        """Return whether a weight is read in place, not written anew each time; weights of blocks are not."""
        return name not in self._in_blocks

    def write(self, name: str, out: Array) -> None:
        """Write a weight minus the direction to a C-contiguous array of its shape."""
        self._direction.subtract_from(self.theta[name].reshape(-1), self._indices[name], out.reshape(-1))

    def table(self, name: str, token_ids: Int64) -> tuple[Array, Int64]:
        """See :meth:`FrozenWeights.table`."""
        tokens, indices = np.unique(token_ids, return_inverse=True)
        if name in self._outside:
            return self._outside[name][tokens], indices.reshape(token_ids.shape)
        rows = moved_rows(self.theta[name], tokens, self._indices[name], self._direction)
        return rows, indices.reshape(token_ids.shape)
