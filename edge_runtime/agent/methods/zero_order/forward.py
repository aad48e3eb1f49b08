"""The forward passes of one step, which turn a batch into scalars.

Shape legend: ``P1`` outer and ``P2`` inner perturbations, ``N`` elements of the flat vector.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.methods.zero_order.ways import Ways
from edge_runtime.engine.dataset import Batch, Lowered
from edge_runtime.engine.staged import StagedModel
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

    The output of the lower blocks is held for one sign and one outer perturbation at a time, and all inner
    perturbations share it. If the lower part is not perturbed, all passes of a batch share it.

    Args:
        model: the whole model.
        parts: the tuned tensors.
        work: counts, epsilon and seed.
        round_number: round of the assignment.
        scale: factor of the noise, float32 ``[N]``; None = 1.
        check: called before each forward pass or block; raises to stop.
        ways: the order of the upper blocks' passes.
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
        ways: Ways,
    ) -> None:
        self._model = model
        self._parts = parts
        self._work = work
        self._round_number = round_number
        self._scale = scale
        self._check = check
        self._ways = ways
        self._group_size = 1
        self._parts_at: dict[int, TunedParts] = {}
        self._is_lower_perturbed = work.lower_learning_rate > 0 and bool(parts.lower)

    def measure(self, theta: Array, out: Array, batch: Batch, step: int) -> Measured:
        """Scalars of one step: from both sides, or from one side where steps are normalised.

        Args:
            theta: float32 ``[N]``, only read.
            out: float32 ``[N]``, equal to theta outside the tuned tensors; the tuned tensors are overwritten.
            batch: examples.
            step: number of the step within the assignment, 1-based.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: onnxruntime could not allocate memory.
        """
        work = self._work
        count = work.num_inner if self._is_lower_perturbed else work.num_outer * work.num_inner
        group_size = self._ways.group_size(batch.input_ids.size, count)
        is_by_block = group_size > 1 and self._ways.is_by_block()
        self._group_size = group_size if is_by_block else 1
        began = time.perf_counter()
        measured = self._measure(theta, out, batch, step)
        if group_size > 1:
            self._ways.add((time.perf_counter() - began) / batch.input_ids.size, is_by_block=is_by_block)
        return measured

    def _measure(self, theta: Array, out: Array, batch: Batch, step: int) -> Measured:
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
        """Mean losses at theta + epsilon z, float64 ``[P1, P2]``.

        ``below`` is the output of the lower blocks if they are not perturbed, else None.
        """
        num_outer, num_inner = self._work.num_outer, self._work.num_inner
        if below is not None:
            numbers = range(num_outer * num_inner)
            return self._upper(below, numbers, epsilon, theta, out, batch, step).reshape(num_outer, num_inner)
        losses = np.empty((num_outer, num_inner), np.float64)
        for outer in range(num_outer):
            self._write(self._parts, "lower", epsilon, theta, step, outer, out)
            numbers = range(outer * num_inner, (outer + 1) * num_inner)
            losses[outer] = self._upper(self._lower(batch, out), numbers, epsilon, theta, out, batch, step)
        return losses

    def _upper(
        self, lowered: Lowered, numbers: range, epsilon: float, theta: Array, out: Array, batch: Batch, step: int
    ) -> Float64:
        """Mean losses at some perturbations of the upper part, in turn or block by block for a group at a time."""
        losses: list[float] = []
        for begin in range(0, len(numbers), self._group_size):
            group = numbers[begin : begin + self._group_size]
            if len(group) == 1:
                self._write(self._parts, "upper", epsilon, theta, step, group[0], out)
                losses.append(self._loss(lowered, batch, out))
                continue

            def write(index: int, place: slice, group: range = group) -> None:
                self._check()
                self._write(self._within(place), "upper", epsilon, theta, step, group[index], out)

            sums = self._model.upper_each(lowered, batch, out, self._work.cut, len(group), write)
            losses += [loss_sum / max(1, batch.num_targets) for loss_sum in sums]
        return np.array(losses, np.float64)

    def _within(self, place: slice) -> TunedParts:
        """The tuned tensors at a place of the flat vector."""
        if place.start not in self._parts_at:
            inside = [one for one in self._parts.upper if place.start <= one.place.start < place.stop]
            self._parts_at[place.start] = dataclasses.replace(self._parts, lower=(), upper=tuple(inside))
        return self._parts_at[place.start]

    def _lower(self, batch: Batch, params: Array) -> Lowered:
        self._check()
        return self._model.lower(batch, params, self._work.cut)

    def _loss(self, lowered: Lowered, batch: Batch, params: Array) -> float:
        self._check()
        loss_sum, _ = self._model.upper(lowered, batch, params, self._work.cut)
        return loss_sum / max(1, batch.num_targets)

    def _write(
        self, parts: TunedParts, which: Which, epsilon: float, theta: Array, step: int, perturbation: int, out: Array
    ) -> None:
        key = (self._work.seed, self._round_number, step)
        perturb(theta, parts, which, epsilon, *key, perturbation, out, self._scale, self._work.noise)


def mean_of(*losses: Float64) -> float:
    """Mean of the finite losses; NaN if none is finite."""
    values = np.concatenate([one.ravel() for one in losses])
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
