"""``uniform``: every arm equally often, on each device over the rounds and in each round over the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from broker_server.methods.scheduler.base import Scheduler, SchedulerContext
from edge_runtime.wire.work import Arm


class UniformScheduler(Scheduler):
    """Plays the arm that this device played least; between those the one that all devices played least; then by lot.

    While all arms are feasible, the counts of one device never differ by more than one.
    """

    name: ClassVar[str] = "uniform"

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        self._counts: dict[str, list[int]] = {}

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        return {**super().to_json(), "counts": {device_id: list(counts) for device_id, counts in self._counts.items()}}

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        self._counts = {device_id: list(counts) for device_id, counts in state["counts"].items()}

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number
        mine = self._counts.setdefault(device_id, [0] * len(self.arms))
        total = np.sum(list(self._counts.values()), axis=0)
        lots = rng.permutation(len(self.arms))
        picked = min(candidates, key=lambda i: (mine[i], int(total[i]), int(lots[i])))
        mine[picked] += 1
        return picked

    def _order(self, device_ids: Sequence[str], rng: np.random.Generator) -> list[str]:
        return [str(device_id) for device_id in rng.permutation(sorted(device_ids))]
