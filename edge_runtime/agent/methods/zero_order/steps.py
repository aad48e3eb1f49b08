"""The steps of an assignment whose reply is scalars: each is measured, applied and stored; one reply holds all."""

from __future__ import annotations

import abc
import collections
import itertools
import logging
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.methods.protocol import Before, Surroundings
from edge_runtime.agent.methods.zero_order.forward import Measured, mean_of
from edge_runtime.agent.methods.zero_order.kept import Kept, Steps
from edge_runtime.bounds import limits
from edge_runtime.engine.dataset import Batch, Dataset, batches
from edge_runtime.engine.run import check_finite
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.engine.training_state import History
from edge_runtime.errors import TensorError
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import SeedPoolWork, ZeroOrderWork

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


MAX_SCALARS: Final = limits.MAX_MESSAGE_BYTES // 4
"""Most scalars of one assignment: the log holds the scalars of a round in one message."""


def check_count(work: ZeroOrderWork | SeedPoolWork, num_each: int) -> None:
    """Refuse more scalars than go into one round.

    Args:
        work: work of an assignment.
        num_each: number of scalars of a step.

    Raises:
        TensorError: there are more than :data:`MAX_SCALARS`.
    """
    num_scalars = work.num_local_steps * num_each
    if num_scalars > MAX_SCALARS:
        msg = f"work of {num_scalars} scalars, at most {MAX_SCALARS} go into one round"
        raise TensorError(msg)


class ScalarSteps(abc.ABC):
    """The common part of executions whose reply is scalars; see :class:`edge_runtime.agent.methods.protocol.Execution`.

    Args:
        kept: stores the scalars of finished steps.
        assignment: the assignment.
        shape: shape of the scalars of one step.
        work: work of the assignment.
        seed: seed of the order of the examples.
        around: see :class:`Surroundings`.
    """

    def __init__(
        self,
        kept: Kept,
        assignment: Assignment,
        shape: tuple[int, ...],
        work: ZeroOrderWork | SeedPoolWork,
        seed: int,
        around: Surroundings,
    ) -> None:
        self._kept = kept
        self._assignment = assignment
        self._round_number = assignment.key.round_number
        self._work = work
        self._seed = seed
        self._around = around
        self._scalars = np.zeros((work.num_local_steps, *shape), np.float32)
        self._num_not_finite = 0
        self._history = History()
        self._identity = ""

    @abc.abstractmethod
    def identity(self, dataset: Dataset) -> str:
        """Return a text that identifies all inputs of the steps."""

    @abc.abstractmethod
    def measure(self, batch: Batch, step: int) -> Measured:
        """Return the scalars of the next step (1-based); the step is not applied yet."""

    @abc.abstractmethod
    def apply(self, step: int, scalars: Array) -> None:
        """Apply a step (1-based), from its scalars alone."""

    def resume(self, dataset: Dataset) -> Before | None:
        """Apply the steps again whose scalars an earlier process stored, without a forward pass."""
        if not self._around.checkpoints.every:
            return None
        self._identity = self.identity(dataset)
        steps = self._kept.load_steps(self._identity)
        if steps is None:
            return None
        done = np.frombuffer(steps.scalars, "<f4").astype(np.float32).reshape(-1, *self._scalars.shape[1:])
        self._scalars[: len(done)] = done
        for step, scalars in enumerate(done, start=1):
            self.apply(step, scalars)
        self._num_not_finite = steps.num_not_finite
        self._history = History(losses=steps.losses, step_times_s=steps.step_times_s)
        self._around.paused.add_earlier(steps.paused_s)
        logger.info("going on after step %d of %d", len(done), self._work.num_local_steps)
        return steps.before, steps.before_s

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Make the remaining steps; each is stored, because it takes many forward passes.

        Raises:
            DivergedError: no loss of any step was finite.
        """
        work, history, clock = self._work, self._history, self._around.clock
        rng = np.random.default_rng([self._seed, self._round_number])
        drawn, num_done = batches(dataset, work.batch_size, rng), len(history.losses)
        collections.deque(itertools.islice(drawn, num_done), maxlen=0)
        for step in range(num_done + 1, work.num_local_steps + 1):
            began = clock()
            measured = self.measure(next(drawn), step)
            self.apply(step, measured.scalars)
            self._scalars[step - 1] = measured.scalars
            self._num_not_finite += measured.num_not_finite
            history.losses.append(measured.loss)
            history.step_times_s.append(clock() - began)
            if math.isfinite(history.losses[-1]):
                on_step(step, history.losses[-1])
            if self._around.checkpoints.every and step < work.num_local_steps:
                self._save(step, before)
        mean_loss = mean_of(np.array(history.losses))
        check_finite("loss", mean_loss, step=work.num_local_steps, learning_rate=work.learning_rate)
        return TrainingResult(mean_loss=mean_loss, step_times_s=tuple(history.step_times_s), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes:
        """The scalars, float32 for every type of the run."""
        del dtype
        return encode_reply(self._scalars.reshape(len(self._scalars), -1), self._num_not_finite)

    def _save(self, num_steps: int, before: Before) -> None:
        result, seconds = before
        self._kept.save_steps(
            Steps(
                identity=self._identity,
                scalars=self._scalars[:num_steps].astype("<f4").tobytes(),
                num_not_finite=self._num_not_finite,
                losses=self._history.losses,
                step_times_s=self._history.step_times_s,
                before=result,
                before_s=seconds,
                paused_s=self._around.paused.seconds,
            )
        )
