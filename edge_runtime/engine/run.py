"""The interface of assignments to an engine, the same for the portable engine and onnxruntime-training."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.errors import DivergedError
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.importance import ImportanceTracker, Scores, unit_scores
from edge_runtime.engine.model import Mode, Scorer
from edge_runtime.engine.slicing import NOTHING_MERGED
from edge_runtime.engine.training_state import TrainingState
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Merged
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters


class Resumable(Protocol):
    """A run whose state can be saved and restored by another process."""

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
        """Update the importance of the units by the last step's gradient."""

    def importance(self) -> Scores:
        """Smoothed scores of the units that stay; empty before the first scores."""

    def adapter(self) -> dict[str, Array]:
        """The current adapter: float32 copies by name."""

    @property
    def resumable(self) -> Resumable | None:
        """The run itself if its state can be saved, else None."""

    def evaluator(self) -> Evaluator:
        """An evaluator for the plan, which shares the weights."""


class BaseRun(abc.ABC):
    """Base class of the runs of all engines.

    Attributes:
        plan: units that stay.
        layout: order and shapes of the adapter.
        weights: sliced frozen weights, merged factors included.
        num_steps: optimizer steps done.
        grad_norm: global norm of the last step's mean gradient, before clipping.

    Args:
        artifact: the opened artifact.
        plan: units that stay.
        params: flat adapter ``[N]`` that training starts from.
        layout: order and shapes of the adapter.
        hyper_parameters: see :class:`HyperParameters`.
        weights: sliced under ``plan``.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        layout: AdapterLayout,
        params: Array,
        hyper_parameters: HyperParameters,
        weights: FrozenWeights,
    ) -> None:
        self.plan = plan
        self.layout = layout
        self.weights = weights
        self.num_steps = 0
        self.grad_norm = 0.0
        self._artifact = artifact
        self._manifest = artifact.manifest
        self._hyper_parameters = hyper_parameters
        self._importance = ImportanceTracker(plan)
        self._last_params = params
        """Adapter at which the last step's gradient was taken."""
        self._last_grads = np.zeros_like(params)
        """Gradient of the last step, in the engine's scale."""

    def score_units(self) -> None:
        """Update the importance of the units by the last step's gradient, at the adapter of that gradient."""
        adapter = self.layout.unflatten(self._last_params)
        scaling = self._hyper_parameters.lora_scaling
        self._importance.update(unit_scores(self._manifest, self.weights, adapter, self.gradient(), scaling))

    def importance(self) -> Scores:
        """Smoothed scores of the units that stay; empty before every group has finite scores."""
        return self._importance.scores()

    def evaluator(self) -> Evaluator:
        """An evaluator for the plan, which shares the sliced weights; do not use it after the plan shrinks."""
        return Evaluator(self._artifact, self.plan, self._scorer())

    @abc.abstractmethod
    def gradient(self) -> dict[str, Array]:
        """Mean gradient of the last step's micro-batches, before clipping, by name; zeros before the first step."""

    @abc.abstractmethod
    def _scorer(self) -> Scorer:
        """A model of the plan and its weights, for evaluation."""

    @property
    def _learning_rate(self) -> float:
        """Learning rate of the current step, with warm-up."""
        given, step = self._hyper_parameters, self.num_steps + 1
        warm_up = min(1.0, step / given.num_warmup_steps) if given.num_warmup_steps else 1.0
        return given.learning_rate * warm_up

    def _check_finite(self, what: str, value: float) -> None:
        check_finite(what, value, step=self.num_steps + 1, learning_rate=self._hyper_parameters.learning_rate)


class Engine(Protocol):
    """Trains one artifact, under one arm after another.

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


def check_finite(what: str, value: float, *, step: int, learning_rate: float) -> None:
    """Refuse a loss or a norm that is not finite.

    Raises:
        DivergedError: the value is not finite.
    """
    if not math.isfinite(value):
        msg = (
            f"training diverged: {what} is {value} in step {step}; "
            f"lower the learning rate (now {learning_rate:g}) or clip gradients"
        )
        raise DivergedError(msg, step=step)
