"""What a scheduler is: five typed methods, and the memory of arms that were too large for a device."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from broker_server.round_types import Outcome
from edge_runtime.wire.messages import Arm, FailureReason, LocalEvaluation, Measurements


class ArmOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one assignment: all that a scheduler may learn from."""

    round_number: int
    device_id: str
    arm: Arm
    sparsity: float
    """Measured fraction of the prunable weights that the arm's plan removed, [0, 1)."""
    outcome: Outcome
    reason: FailureReason | None = None
    num_examples: int | None = None
    train_loss: float | None = None
    measurements: Measurements | None = None
    evaluation: LocalEvaluation | None = None


class Scheduler(abc.ABC):
    """Chooses arms for devices and learns from what came of them.

    Subclasses say which of a device's feasible arms they take (:meth:`_pick`), and keep what they learn in
    :meth:`state`. All chance comes from the generator passed in, so that a run can be repeated.
    """

    name: ClassVar[str]

    def __init__(self, arms: tuple[Arm, ...]) -> None:
        self.arms = tuple(dict.fromkeys(arms))
        self._infeasible: dict[str, set[int]] = {}

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
        """Learn from one assignment. An arm that ran out of memory is not feasible, and so is everything costlier."""
        if outcome.outcome is Outcome.FAILED and outcome.reason is FailureReason.INSUFFICIENT_MEMORY:
            known = self._infeasible.setdefault(outcome.device_id, set())
            known.update(i for i, arm in enumerate(self.arms) if costs_at_least(arm, outcome.arm))

    def state(self) -> dict[str, Any]:
        """All that was learnt, of JSON types, for :meth:`restore`."""
        return {"infeasible": {device_id: sorted(known) for device_id, known in sorted(self._infeasible.items())}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of a scheduler with the same arms."""
        self._infeasible = {device_id: set(known) for device_id, known in state["infeasible"].items()}

    def feasible(self, device_id: str) -> list[int]:
        """Indices of the arms that are not known to be too large for a device, ascending."""
        known = self._infeasible.get(device_id, set())
        return [i for i in range(len(self.arms)) if i not in known]

    @abc.abstractmethod
    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        """One of ``candidates`` (indices of arms, ascending, one or more)."""

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
