"""What working on an assignment asks of an engine, whichever it is: the portable one, or onnxruntime-training's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.errors import DivergedError
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.engine.frozen import Array
from edge_runtime.engine.importance import Scores
from edge_runtime.engine.model import Mode, Scorer
from edge_runtime.engine.slicing import NOTHING_MERGED
from edge_runtime.engine.training_state import TrainingState
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Merged
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters


class Resumable(Protocol):
    """A run whose state can be kept, and taken up by another process."""

    num_steps: int

    def state(self) -> TrainingState:
        """See :meth:`edge_runtime.engine.trainer.TrainingRun.state`."""

    def restore(self, state: TrainingState) -> None:
        """See :meth:`edge_runtime.engine.trainer.TrainingRun.restore`."""


class Run(Protocol):
    """One assignment under way.

    Attributes:
        plan: units that stay.
        layout: order and shapes of the adapter.
        num_steps: optimizer steps done.
    """

    plan: Plan
    layout: AdapterLayout
    num_steps: int

    def step(self, micro_batches: Iterable[Batch], on_batch: Callable[[], None] | None = None) -> float:
        """One optimizer step; see :meth:`edge_runtime.engine.trainer.TrainingRun.step`."""

    def prune(self, plan: Plan) -> None:
        """Shrink to a smaller plan; see :meth:`edge_runtime.engine.trainer.TrainingRun.prune`."""

    def score_units(self) -> None:
        """Take the last step's gradient into the importance of the units."""

    def importance(self) -> Scores:
        """Smoothed scores of the units that stay; empty before the first."""

    def adapter(self) -> dict[str, Array]:
        """The adapter as it is now: float32 copies by name."""

    @property
    def resumable(self) -> Resumable | None:
        """The run itself, if its state can be kept."""

    def scorer(self) -> Scorer:
        """A model of the plan and its weights, to evaluate with."""


class Engine(Protocol):
    """Trains one artifact, on one arm after the other.

    Attributes:
        mode: how graphs are run.
    """

    mode: Mode

    def start(
        self,
        plan: Plan,
        rank: int,
        adapter: Mapping[str, Array],
        hyper_parameters: HyperParameters,
        merged: Merged = NOTHING_MERGED,
    ) -> Run:
        """Get ready for one assignment; see :meth:`edge_runtime.engine.trainer.Trainer.start`."""

    def evaluator(self, run: Run) -> Evaluator:
        """An evaluator for the plan of ``run`` that shares its weights."""


def check_finite(what: str, value: float, *, step: int, learning_rate: float) -> None:
    """Refuse a loss or a norm that is not finite.

    Raises:
        DivergedError: it is not.
    """
    if not math.isfinite(value):
        msg = (
            f"training diverged: {what} is {value} in step {step}; "
            f"lower the learning rate (now {learning_rate:g}) or clip gradients"
        )
        raise DivergedError(msg, step=step)
