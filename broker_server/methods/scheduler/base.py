"""The base class of schedulers: six typed methods, and the memory of arms that are infeasible on a device."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler.box import ArmBox
from edge_runtime.wire.arms import LORA_AXES, Axes, Axis
from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm


class ArmOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one assignment, from which schedulers learn."""

    round_number: int
    device_id: str
    arm: Arm
    """The arm that was played."""
    sparsity: float
    """Measured fraction of the prunable weights that the arm's plan removed, [0, 1)."""
    outcome: Outcome
    reason: FailureReason | None = None
    num_examples: int | None = None
    train_loss: float | None = None
    measurements: Measurements | None = None
    evaluation: LocalEvaluation | None = None
    completion_s: float | None = None
    """Seconds from the assignment to the stored update; emulated if the fleet is emulated, else wall time."""
    adapter_delta: float | None = None
    """Frobenius norm of the change of B A over all targets, from the assignment to the update."""
    num_local_steps: int | None = None
    """Optimizer steps of the assignment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerContext:
    """Facts for schedulers; a bandit uses only the axes and the number of rounds."""

    axes: Axes = LORA_AXES
    """Axes of the arms; every scheduler reads them."""
    num_rounds: int = 0
    """Rounds of the run; 0 = unknown."""
    device_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Class of each device (``by_class``)."""
    class_arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    """Arm of each class (``by_class``)."""
    class_capability: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Speed of each class, larger is faster; it decides the arms of classes without ``class_arms`` (``by_class``)."""
    completion_s: Callable[[str, Arm, int], float] | None = None
    """True expected completion time of (device, arm, round), seconds (``oracle``)."""
    is_feasible: Callable[[str, Arm], bool] | None = None
    """Whether an arm fits a device's memory (``oracle``); None = all do."""
    gain: Callable[[Arm], float] | None = None
    """True expected learning gain of an arm, in any unit (``oracle``); None = :func:`.reward.prior_gain`."""


class Scheduler(abc.ABC):
    """Chooses arms for devices and learns from their outcomes.

    Subclasses choose among a device's feasible arms (:meth:`_pick`, or :meth:`choose` and :meth:`choose_again` if arms
    are not taken from the list), and return their state in :meth:`to_json`. All random numbers come from the given
    generator, so that a run can be repeated.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Axis, ...]] = ()
    """Axes that the scheduler refers to by name; it works with any other axes."""

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        """Start without observations.

        Raises:
            ConfigError: the method's arms lack an axis that the scheduler needs.
        """
        self.arms = tuple(dict.fromkeys(arms))
        self.context = context or SchedulerContext()
        self.axes = self.context.axes
        if lacking := [axis.label for axis in self.needs if not self.axes.has(axis.name)]:
            msg = f"scheduler {self.name!r} chooses by {lacking[0]}, which this method's arms do not have: take another"
            raise ConfigError(msg)
        self.box = ArmBox.of(self.arms, self.axes)
        self._infeasible: dict[str, list[Arm]] = {}

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """Choose an arm for each device that is available at the start of a round.

        A device without a feasible arm gets the cheapest again: its memory may be free now, and a refusal is recorded.
        """
        choices: dict[str, Arm] = {}
        for device_id in self._order(device_ids, rng):
            candidates = self.feasible(device_id) or self._cheapest()
            choices[device_id] = self.arms[self._pick(round_number, device_id, candidates, rng)]
        return choices

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """Choose another arm for a device that refused its arm in this round; None = no arm is left."""
        candidates = self.feasible(device_id)
        return self.arms[self._pick(round_number, device_id, candidates, rng)] if candidates else None

    def observe(self, outcome: ArmOutcome) -> None:
        """Learn from one assignment: an infeasible arm, and all costlier arms, are not chosen again for the device.

        An arm is infeasible if the device refused it as infeasible, or missed the round's deadline with it. It becomes
        feasible again if the device completes this arm or a costlier one.
        """
        known = self._infeasible.get(outcome.device_id, [])
        was_refused = outcome.outcome is Outcome.FAILED and outcome.reason is FailureReason.ARM_INFEASIBLE
        if was_refused or outcome.outcome is Outcome.TIMED_OUT:
            if not any(self.axes.costs_at_least(outcome.arm, arm) for arm in known):
                kept = [arm for arm in known if not self.axes.costs_at_least(arm, outcome.arm)]
                self._infeasible[outcome.device_id] = [*kept, outcome.arm]
        elif outcome.outcome is Outcome.ACCEPTED and known:
            self._infeasible[outcome.device_id] = [a for a in known if not self.axes.costs_at_least(outcome.arm, a)]

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """Learn from a finished round: the last outcome of each device, already passed to :meth:`observe`."""
        del outcomes

    def to_json(self) -> dict[str, Any]:
        """Return the scheduler's state in JSON types, for :meth:`load_json`; it is stored after every change."""
        known = sorted(self._infeasible.items())
        return {"infeasible": {device_id: [self.axes.row(arm) for arm in arms] for device_id, arms in known}}

    def load_json(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`to_json` from a scheduler with the same arms."""
        self._infeasible = {
            device_id: [self.axes.arm(row) for row in rows] for device_id, rows in state["infeasible"].items()
        }

    def is_feasible(self, device_id: str, arm: Arm) -> bool:
        """Return whether an arm, listed or not, may be feasible for a device."""
        return not any(self.axes.costs_at_least(arm, known) for known in self._infeasible.get(device_id, ()))

    def feasible(self, device_id: str) -> list[int]:
        """Indices of the listed arms that are not known to be infeasible for a device, ascending."""
        return [i for i, arm in enumerate(self.arms) if self.is_feasible(device_id, arm)]

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        """One of ``candidates`` (indices of arms, ascending, one or more)."""
        raise NotImplementedError

    def _order(self, device_ids: Sequence[str], rng: np.random.Generator) -> list[str]:
        """Order in which devices are served; a scheduler that balances between devices may draw it from ``rng``."""
        del rng
        return sorted(device_ids)

    def _cheapest(self) -> list[int]:
        """Arms for which no listed arm costs less."""
        arms = self.arms
        return [
            i
            for i, arm in enumerate(arms)
            if not any(other != arm and self.axes.costs_at_least(arm, other) for other in arms)
        ]
