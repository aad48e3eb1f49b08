"""Losses on both sides of perturbations: the forward passes of one step.

Shape legend: ``P1`` outer and ``P2`` inner perturbations, ``N`` elements of the flat vector.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.staged import StagedModel
from edge_runtime.wire.work import ZeroOrderWork
from edge_runtime.zero_order.parts import TunedParts, Which
from edge_runtime.zero_order.replay import perturb

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Losses:
    """Mean losses of a model at theta +- epsilon z.

    What the lower blocks give is held for one sign at a time, and serves all inner perturbations; where the lower part
    is not perturbed, it serves all of a batch.

    Args:
        model: holds theta's layout.
        parts: what is tuned.
        work: counts, epsilon and seed.
        round_number: of the assignment.
        check: called before each forward pass; raises to stop.
    """

    def __init__(
        self, model: StagedModel, parts: TunedParts, work: ZeroOrderWork, round_number: int, check: Callable[[], None]
    ) -> None:
        self._model = model
        self._parts = parts
        self._work = work
        self._round_number = round_number
        self._check = check
        self._is_lower_perturbed = work.lower_learning_rate > 0 and bool(parts.lower)

    def measure(self, theta: Array, out: Array, batch: Batch, step: int) -> tuple[Float64, Float64]:
        """Losses of one step.

        Args:
            theta: float32 ``[N]``, only read.
            out: float32 ``[N]``; what is tuned in it is written over, the rest is theta's.
            batch: examples.
            step: within the assignment, 1-based.

        Returns:
            Mean negative log-likelihoods of the batch's targets, nats, at theta + epsilon z and at theta - epsilon z,
            float64 ``[P1, P2]`` each.

        Raises:
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        work, cut = self._work, self._work.cut
        losses = np.empty((2, work.num_outer, work.num_inner), np.float64)
        num_targets = max(1, batch.num_targets)
        if not self._is_lower_perturbed:
            self._check()
            lowered = self._model.lower(batch, theta, cut)
        for outer in range(work.num_outer):
            for side, epsilon in enumerate((work.epsilon, -work.epsilon)):
                if self._is_lower_perturbed:
                    self._check()
                    self._write("lower", epsilon, theta, step, outer, out)
                    lowered = self._model.lower(batch, out, cut)
                for inner in range(work.num_inner):
                    self._check()
                    self._write("upper", epsilon, theta, step, outer * work.num_inner + inner, out)
                    losses[side, outer, inner] = self._model.upper(lowered, batch, out, cut)[0] / num_targets
        return losses[0], losses[1]

    def _write(self, which: Which, epsilon: float, theta: Array, step: int, perturbation: int, out: Array) -> None:
        seed = self._work.seed
        perturb(theta, self._parts, which, epsilon, seed, self._round_number, step, perturbation, out)
