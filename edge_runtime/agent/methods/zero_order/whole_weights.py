"""All weights of a model in one copy, and memory for the perturbed weights of one block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.frozen import FrozenWeights, as_float32, take
from edge_runtime.formats.manifest import TensorSpec
from edge_runtime.zero_order.estimator import check_epsilon
from edge_runtime.zero_order.pool import Direction, tensor_indices

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
        self._rows: dict[str, _Rows] = {}
        theta: dict[str, Array] = {}
        for spec in manifest.tensors:
            before_tensor()
            if spec.name in manifest.looked_up:
                self._rows[spec.name] = _Rows(artifact, spec, self._indices[spec.name], direction)
                continue
            value = np.array(artifact.weight(spec), np.float32, order="C")
            direction.subtract_from(value.reshape(-1), self._indices[spec.name], value.reshape(-1))
            theta[spec.name] = value
            artifact.release()
        super().__init__(theta)
        self.theta = theta
        self._outside = {name: theta[name].copy() for name in theta if name not in self._in_blocks}

    def keep(self, dataset: Dataset) -> None:
        """Make the rows of a word embedding that examples look up, in one pass over all that moved the weights."""
        for rows in self._rows.values():
            rows.add(np.unique(np.append(dataset.tokens, dataset.pad_token_id)))

    def check_epsilon(self, epsilon: float) -> None:
        """Refuse a perturbation that is lost beside a weight; raises as :func:`estimator.check_epsilon`."""
        for value in (*self.theta.values(), *(rows.values for rows in self._rows.values())):
            check_epsilon(value, epsilon)

    def move(self, direction: Direction) -> None:
        """Subtract a direction from theta, in place."""
        for name, value in self.theta.items():
            flat = value.reshape(-1)
            direction.subtract_from(flat, self._indices[name], flat)
        for rows in self._rows.values():
            rows.move(direction)

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
        return self._rows[name].less(tokens, self._direction), indices.reshape(token_ids.shape)


class _Rows:
    """Those rows of a matrix that were asked for.

    Args:
        artifact: where the matrix began.
        spec: of the matrix ``[V, H]``.
        tensor: its index.
        direction: how far it is from there.

    Attributes:
        values: float32 ``[U, H]``.
    """

    def __init__(self, artifact: Artifact, spec: TensorSpec, tensor: int, direction: Direction) -> None:
        self._artifact, self._spec, self._tensor = artifact, spec, tensor
        self._moves = [direction]
        self._tokens = np.zeros(0, np.int64)
        self.values: Array = np.zeros((0, spec.shape[1]), np.float32)

    def add(self, tokens: Int64) -> None:
        """Make those of tokens (``[n]``, ascending, each once) that are not there."""
        missing = np.setdiff1d(tokens, self._tokens, assume_unique=True)
        if not missing.size:
            return
        made = as_float32(take(self._artifact.stored(self._spec), missing, 0))
        self._artifact.release()
        for direction in self._moves:
            direction.subtract_from_rows(made, missing, self._tensor)
        order = np.argsort(np.concatenate([self._tokens, missing]))
        self._tokens = np.concatenate([self._tokens, missing])[order]
        self.values = np.concatenate([self.values, made])[order]

    def move(self, direction: Direction) -> None:
        """Subtract a direction, also from rows that are made later."""
        self._moves.append(direction)
        direction.subtract_from_rows(self.values, self._tokens, self._tensor)

    def less(self, tokens: Int64, direction: Direction) -> Array:
        """Rows of tokens (``[n]``, ascending, each once) less a direction; a copy."""
        self.add(tokens)
        found = self.values[np.searchsorted(self._tokens, tokens)]
        direction.subtract_from_rows(found, tokens, self._tensor)
        return found
