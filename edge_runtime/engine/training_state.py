"""The state of training between two steps, from which another process can continue bit for bit.

Shape legend: ``N`` trainable elements.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.importance import Scores
from edge_runtime.formats import names
from edge_runtime.formats.plan import PackedPlan

VECTORS: Final = (names.PARAMS, names.EXP_AVG, names.EXP_AVG_SQ)
"""The trained vector, and its two moments of AdamW."""


@dataclasses.dataclass(slots=True, kw_only=True)
class History:
    """The losses and times of a training loop so far; the loop adds to it."""

    losses: list[float] = dataclasses.field(default_factory=list)
    """Loss of every step, nats."""
    step_times_s: list[float] = dataclasses.field(default_factory=list)
    """Time of every step, drawing its batches and a pruning before it included."""
    importance_s: float = 0.0
    """Time of scoring units, between the steps."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """The state of an assignment between two steps, without the assignment, its data and the artifact.

    The arrays belong to the run. Write or copy them before its next step, which changes them.
    """

    num_steps: int
    """Optimizer steps done."""
    grad_norm: float
    """Norm of the last step's mean gradient, before clipping."""
    plan: PackedPlan
    """Units that are left."""
    vectors: dict[str, npt.NDArray[np.float32]]
    """Each of :data:`VECTORS`, float32 ``[N]``."""
    scores: Scores
    """Smoothed scores, of the groups that have scores."""
