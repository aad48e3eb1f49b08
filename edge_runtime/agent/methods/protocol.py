"""The interface of a method on the device: it makes a :class:`Task` of each assignment, and the runner starts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.pauses import PausedTime
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import Work

Before = tuple[EvaluationResult | None, float]
"""The evaluation before training, None if there is none, and the seconds that it took."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The surroundings of one assignment."""

    checkpoints: Checkpoints
    clock: Callable[[], float]
    """Monotonic seconds, of a clock that stands still while the work pauses."""
    paused: PausedTime
    say: Callable[[str], None]
    """Shows people the current step."""
    check: Callable[[], None]
    """Call between pieces of work: waits while the work should pause, raises if it should end."""
    pull_rate: float | None = None
    """Rate of the last pulled payload, bytes a second; None = this process pulled no payload."""


class Execution(Protocol):
    """One assignment under way: resume, evaluate, train, evaluate, encode."""

    def resume(self, dataset: Dataset) -> Before | None:
        """Go on from a checkpoint, if there is one.

        Returns:
            The evaluation from before training; None = there is no checkpoint.
        """

    def evaluate(self, holdout: Dataset) -> EvaluationResult | None:
        """Quality on held-out examples as the work stands; called before training and after it. None = not known."""

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Do the work.

        Args:
            dataset: the device's examples.
            before: the evaluation before training, for a checkpoint.
            on_step: call after each step with its number and loss.
        """

    def encode(self, dtype: WireDtype) -> bytes | None:
        """The blob that goes up; None = there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One assignment that fits this device, before its work begins."""

    max_length: int
    """Tokens that examples are cut at."""
    start: Callable[[Dataset], Execution]
    """Loads graphs, slices weights, and prepares the device's examples; call it once."""


W_contra = TypeVar("W_contra", bound=Work, contravariant=True)


class Method(Protocol[W_contra]):
    """The device's side of a method, for one artifact; it may keep data between assignments."""

    def check_run(self, welcome: Welcome) -> None:
        """Get ready for a run before its first assignment; refuse a run of which this device can do no assignment.

        Raises:
            FedSpineError: the device can do none.
        """

    def begin(self, assignment: Assignment, work: W_contra, blob: bytes, around: Surroundings) -> Task:
        """Check the assignment and its payload before any work is done.

        Args:
            assignment: the assignment.
            work: its work.
            blob: its payload, empty if it has none.
            around: see :class:`Surroundings`.

        Raises:
            FedSpineError: the assignment does not fit the artifact, or this device.
        """


@runtime_checkable
class WithHistory(Method[W_contra], Protocol[W_contra]):
    """A method whose work may tell of earlier rounds (``has_history``), so that devices need not pull its payload."""

    def rebuild(self, assignment: Assignment, work: W_contra, around: Surroundings) -> bytes | None:
        """Rebuild the payload of an assignment from this device's files, so that it is not pulled.

        Args:
            assignment: one with a payload.
            work: its work.
            around: see :class:`Surroundings`.

        Returns:
            Exactly the bytes of the payload; None = it must be pulled, or a pull is faster.
        """
