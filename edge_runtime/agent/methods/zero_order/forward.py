"""From a batch to scalars: the forward passes of one step.

Shape legend: ``P1`` outer and ``P2`` inner perturbations, ``N`` elements of the flat vector.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.staged import Lowered, StagedModel
from edge_runtime.wire.work import ZeroOrderWork
from edge_runtime.zero_order.estimator import central_differences, one_sided_differences
from edge_runtime.zero_order.parts import TunedParts, Which
from edge_runtime.zero_order.replay import perturb

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The scalars and the loss of a step's passes."""

    scalars: Array
    """Rho, float32 ``[P1, P2]``, all finite."""
    num_not_finite: int
    """Number of scalars that are 0 because a loss was not finite."""
    loss: float
    """Mean of the losses that are finite, nats; NaN if none is."""


class Estimator:
    """Differences of a model's losses along perturbations of theta.

    What the lower blocks give is held for one sign at a time, and serves all inner perturbations; where the lower part
    is not perturbed, it serves all of a batch.

    Args:
        model: holds theta's layout.
        parts: the tuned tensors.
        work: counts, epsilon and seed.
        round_number: of the assignment.
        scale: factor of the noise, float32 ``[N]``; None = 1.
        check: called before each forward pass; raises to stop.
    """

    def __init__(
        self,
        model: StagedModel,
        parts: TunedParts,
        work: ZeroOrderWork,
        round_number: int,
        *,
        scale: Array | None,
        check: Callable[[], None],
    ) -> None:
        self._model = model
        self._parts = parts
        self._work = work
        self._round_number = round_number
        self._scale = scale
        self._check = check
        self._is_lower_perturbed = work.lower_learning_rate > 0 and bool(parts.lower)

    def measure(self, theta: Array, out: Array, batch: Batch, step: int) -> Measured:
        """Scalars of one step: from both sides, or from one side where steps are normalised.

        Args:
            theta: float32 ``[N]``, only read.
            out: float32 ``[N]``; what is tuned in it is written over, the rest is theta's.
            batch: examples.
            step: within the assignment, 1-based.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        work = self._work
        below = None if self._is_lower_perturbed else self._lower(batch, theta)
        if work.is_normalised:
            clean = self._loss(below or self._lower(batch, theta), batch, theta)
            plus = self._losses(work.epsilon, below, theta, out, batch, step)
            scalars, num_bad = one_sided_differences(plus, clean, work.epsilon, work.largest_scalar)
            return Measured(scalars=scalars, num_not_finite=num_bad, loss=mean_of(plus, np.array([clean])))
        plus, minus = (self._losses(sign * work.epsilon, below, theta, out, batch, step) for sign in (1, -1))
        scalars, num_bad = central_differences(plus, minus, work.epsilon, work.largest_scalar)
        return Measured(scalars=scalars, num_not_finite=num_bad, loss=mean_of(plus, minus))

    def _losses(
        self, epsilon: float, below: Lowered | None, theta: Array, out: Array, batch: Batch, step: int
    ) -> Float64:
        """Mean losses at theta + epsilon z, float64 ``[P1, P2]``; ``below`` where the lower part is not perturbed."""
        num_outer, num_inner = self._work.num_outer, self._work.num_inner
        losses = np.empty((num_outer, num_inner), np.float64)
        for outer in range(num_outer):
            lowered = below
            if lowered is None:
                self._write("lower", epsilon, theta, step, outer, out)
                lowered = self._lower(batch, out)
            for inner in range(num_inner):
                self._write("upper", epsilon, theta, step, outer * num_inner + inner, out)
                losses[outer, inner] = self._loss(lowered, batch, out)
        return losses

    def _lower(self, batch: Batch, params: Array) -> Lowered:
        self._check()
        return self._model.lower(batch, params, self._work.cut)

    def _loss(self, lowered: Lowered, batch: Batch, params: Array) -> float:
        self._check()
        loss_sum, _ = self._model.upper(lowered, batch, params, self._work.cut)
        return loss_sum / max(1, batch.num_targets)

    def _write(self, which: Which, epsilon: float, theta: Array, step: int, perturbation: int, out: Array) -> None:
        key = (self._work.seed, self._round_number, step)
        perturb(theta, self._parts, which, epsilon, *key, perturbation, out, self._scale, self._work.noise)


def mean_of(*losses: Float64) -> float:
    """Of those that are finite; NaN if none is."""
    values = np.concatenate([one.ravel() for one in losses])
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
