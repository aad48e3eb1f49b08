"""The base class of bandits on the grid of arms: one bandit for each device, with the reward of :mod:`.reward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler.base import ArmOutcome, Scheduler, SchedulerContext
from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.reward import credit_round
from broker_server.methods.scheduler.ucb import DiscountedCounts
from edge_runtime.wire.work import Arm


class GridScheduler(Scheduler):
    """Keeps discounted counts of rewards for each device and listed arm; subclasses compute an arm's index."""

    discount: ClassVar[float] = 0.95
    """Factor of a device's earlier rewards for each later reward."""

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        self._known: dict[str, DiscountedCounts] = {}
        self._deepest: dict[str, float] = {}

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """See the base. Arms that are not in the list (on the ramp) count for the nearest listed arm."""
        earned = credit_round(outcomes, self._deepest)
        for outcome in outcomes:
            if outcome.device_id in earned:
                self._counts(outcome.device_id).add(self._nearest(outcome.arm), earned[outcome.device_id].reward)
                deepest = self._deepest.get(outcome.device_id, 0.0)
                self._deepest[outcome.device_id] = max(deepest, outcome.sparsity)
            elif outcome.outcome is Outcome.TIMED_OUT:
                self._counts(outcome.device_id).add(self._nearest(outcome.arm), 0.0)

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        known = {device_id: counts.to_json() for device_id, counts in sorted(self._known.items())}
        return {**super().to_json(), "known": known, "deepest": dict(sorted(self._deepest.items()))}

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        restored = DiscountedCounts.from_json
        self._known = {device_id: restored(counts, self.discount) for device_id, counts in state["known"].items()}
        self._deepest = dict(state["deepest"])

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number
        index = self._indices(self._counts(device_id), rng)
        lots = rng.permutation(len(self.arms))
        return max(candidates, key=lambda i: (float(index[i]), int(lots[i])))

    def _indices(self, counts: DiscountedCounts, rng: np.random.Generator) -> Floats:
        """The index of every arm of one device [num_arms]; the feasible arm with the largest index is played."""
        raise NotImplementedError

    def _counts(self, device_id: str) -> DiscountedCounts:
        return self._known.setdefault(device_id, DiscountedCounts(len(self.arms), self.discount))

    def _nearest(self, arm: Arm) -> int:
        """The listed arm that is nearest on the last axis; ties are broken by the axis before it, and so on."""
        row = self.axes.row(arm)

        def distance(i: int) -> tuple[float, ...]:
            away = [abs(x - y) for x, y in zip(self.axes.row(self.arms[i]), row, strict=True)]
            return tuple(reversed(away))

        return min(range(len(self.arms)), key=distance)
