"""What a scheduler is: six typed methods, the memory of arms that were too large for a device, and the box of arms."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from broker_server.methods.rounds.types import Outcome
from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.messages import Arm, FailureReason


class ArmOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one assignment: all that a scheduler may learn from."""

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
    """From the assignment to the stored update; emulated where the fleet is emulated, else wall time."""
    adapter_delta: float | None = None
    """Frobenius norm of the change of B A over all targets, from what was sent to what came back."""
    num_local_steps: int | None = None
    """Optimizer steps of the assignment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerContext:
    """What only some schedulers may know; a bandit asks for none of it but the number of rounds."""

    num_rounds: int = 0
    """Rounds of the run; 0 = not said."""
    device_classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Class of each device (``by_class``)."""
    class_arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    """Arm of each class (``by_class``)."""
    class_capability: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Speed of each class, larger is faster: deals the arms where ``class_arms`` does not (``by_class``)."""
    completion_s: Callable[[str, Arm, int], float] | None = None
    """True expected completion time of (device, arm, round), seconds (``oracle``)."""
    is_feasible: Callable[[str, Arm], bool] | None = None
    """Whether an arm fits a device's memory (``oracle``); None = all do."""
    gain: Callable[[Arm], float] | None = None
    """True expected learning gain of an arm, in any unit (``oracle``); None = :func:`.reward.prior_gain`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmBox:
    """The bounding box of some arms: the space of schedulers that are not bound to a list."""

    min_ratio: float
    max_ratio: float
    min_rank: int
    max_rank: int

    @classmethod
    def of(cls, arms: Sequence[Arm]) -> ArmBox:
        """The smallest box that holds all of ``arms`` (one or more)."""
        ratios = [arm.pruning_ratio for arm in arms]
        ranks = [arm.rank for arm in arms]
        return cls(min_ratio=min(ratios), max_ratio=max(ratios), min_rank=min(ranks), max_rank=max(ranks))

    def ratios(self) -> list[float]:
        """Ratios that may be played, ascending: multiples of 1 / :data:`RATIO_STEPS`, and both ends."""
        low, high = self.min_ratio * RATIO_STEPS, self.max_ratio * RATIO_STEPS
        inner = [k / RATIO_STEPS for k in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
        return sorted({self.min_ratio, *inner, self.max_ratio})

    def ranks(self, most: int = 8) -> list[int]:
        """At most ``most`` ranks of the box, ascending, spread geometrically, both ends among them."""
        if self.max_rank - self.min_rank < most:
            return list(range(self.min_rank, self.max_rank + 1))
        return sorted({round(rank) for rank in np.geomspace(self.min_rank, self.max_rank, most)})

    def lattice(self) -> tuple[Arm, ...]:
        """Every arm of :meth:`ratios` and :meth:`ranks`, by ratio, then by rank, ascending."""
        ranks = self.ranks()
        return tuple(Arm(pruning_ratio=ratio, rank=rank) for ratio in self.ratios() for rank in ranks)


RATIO_STEPS: Final = 64
"""Ratios are multiples of 1 / this (ours): plans are cached by ratio, and no finer step changes a small model."""


class Scheduler(abc.ABC):
    """Chooses arms for devices and learns from what came of them.

    Subclasses say which of a device's feasible arms they take (:meth:`_pick`, or :meth:`choose` and
    :meth:`choose_again` where arms are not taken from the list), and keep what they learn in :meth:`state`. All chance
    comes from the generator passed in, so that a run can be repeated.
    """

    name: ClassVar[str]

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        self.arms = tuple(dict.fromkeys(arms))
        self.box = ArmBox.of(self.arms)
        self.context = context or SchedulerContext()
        self._infeasible: dict[str, list[Arm]] = {}

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """An arm for each device that is there at the start of a round.

        A device that no arm fits gets the cheapest again: its memory may be free by now, and its refusal is recorded.
        """
        choices: dict[str, Arm] = {}
        for device_id in self._order(device_ids, rng):
            candidates = self.feasible(device_id) or self._cheapest()
            choices[device_id] = self.arms[self._pick(round_number, device_id, candidates, rng)]
        return choices

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """Another arm for a device that ran out of memory in this round; None when nothing is left to try."""
        candidates = self.feasible(device_id)
        return self.arms[self._pick(round_number, device_id, candidates, rng)] if candidates else None

    def observe(self, outcome: ArmOutcome) -> None:
        """Learn from one assignment. An arm that is infeasible is so for good, and so is everything costlier.

        Infeasible is what ran out of memory, and what missed the round's deadline.
        """
        out_of_memory = outcome.outcome is Outcome.FAILED and outcome.reason is FailureReason.INSUFFICIENT_MEMORY
        if out_of_memory or outcome.outcome is Outcome.TIMED_OUT:
            known = self._infeasible.get(outcome.device_id, [])
            if not any(costs_at_least(outcome.arm, arm) for arm in known):
                kept = [arm for arm in known if not costs_at_least(arm, outcome.arm)]
                self._infeasible[outcome.device_id] = [*kept, outcome.arm]

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """Learn from a finished round: its last outcome for each device, each of them already observed."""
        del outcomes

    def state(self) -> dict[str, Any]:
        """All that was learnt, of JSON types, for :meth:`restore`."""
        known = sorted(self._infeasible.items())
        return {"infeasible": {device_id: [[arm.pruning_ratio, arm.rank] for arm in arms] for device_id, arms in known}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of a scheduler with the same arms."""
        self._infeasible = {
            device_id: [Arm(pruning_ratio=ratio, rank=rank) for ratio, rank in arms]
            for device_id, arms in state["infeasible"].items()
        }

    def is_feasible(self, device_id: str, arm: Arm) -> bool:
        """Whether an arm, of the list or not, is not known to be infeasible for a device."""
        return not any(costs_at_least(arm, known) for known in self._infeasible.get(device_id, ()))

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
        """Arms that cost no more than any arm that they can be compared with."""
        arms = self.arms
        return [
            i for i, arm in enumerate(arms) if not any(other != arm and costs_at_least(arm, other) for other in arms)
        ]


def costs_at_least(arm: Arm, other: Arm) -> bool:
    """Whether ``arm`` needs at least the memory of ``other``: it prunes no more, and its rank is no smaller."""
    return arm.pruning_ratio <= other.pruning_ratio and arm.rank >= other.rank
