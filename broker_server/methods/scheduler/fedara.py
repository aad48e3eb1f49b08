"""``fedara``: ranks within a budget that shrinks over the rounds, unpruned; after FedARA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.scheduler.base import ArmOutcome, Scheduler, SchedulerContext
from edge_runtime.wire.arms import PRUNING_RATIO, RANK, Axis
from edge_runtime.wire.work import Arm

WARMUP: Final = 0.1
"""Share of the rounds in which every device has the largest rank."""
FINAL: Final = 0.4
"""Share of the rounds, the last ones, at the final budget."""
FINAL_RANK_RATIO: Final = 0.25
"""The final mean rank over the largest one (the smallest rank of the box where that is more)."""
DISCOUNT: Final = 0.8


class FedAraScheduler(Scheduler):
    """The least pruned ratio for all; the mean rank falls along a cubic, and important updates keep more of it.

    FedARA (arXiv 2501.14406) allocates ranks adaptively under a falling budget, module by module within one adapter.
    Here an arm has one rank, so the budget is shared among devices (ours): in proportion to the discounted norm of the
    change of B A that each of them brought. The cubic is AdaLoRA's (arXiv 2303.10512).
    """

    name: ClassVar[str] = "fedara"
    needs: ClassVar[tuple[Axis, ...]] = (PRUNING_RATIO, RANK)

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        if self.context.num_rounds < 1:
            msg = "scheduler 'fedara' plans ahead: it needs the number of rounds"
            raise ConfigError(msg)
        self._importance: dict[str, float] = {}

    def budget(self, round_number: int) -> float:
        """Mean rank of a round (1-based)."""
        rounds, (least, most) = self.context.num_rounds, self.box.side(RANK.name)
        final = max(float(least), FINAL_RANK_RATIO * most)
        start, end = WARMUP * rounds, (1.0 - FINAL) * rounds
        left = 1.0 - min(1.0, max(0.0, (round_number - 1 - start) / max(1.0, end - start)))
        return final + (most - final) * left**3

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See the base."""
        del rng
        ordered = sorted(device_ids)
        known = [self._importance[i] for i in ordered if i in self._importance]
        usual = float(np.mean(known)) if known else 1.0
        weights = np.array([self._importance.get(i, usual) for i in ordered])
        shares = weights / weights.mean() if weights.size and weights.mean() > 0 else np.ones(len(ordered))
        ranks = np.clip(np.round(self.budget(round_number) * shares), *self.box.side(RANK.name))
        return {
            device_id: self._fitting(device_id, int(rank)) or self.box.cheapest
            for device_id, rank in zip(ordered, ranks, strict=True)
        }

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See the base."""
        del rng
        return self._fitting(device_id, round(self.budget(round_number)))

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """See the base."""
        for outcome in outcomes:
            if outcome.adapter_delta is not None:
                before = self._importance.get(outcome.device_id, outcome.adapter_delta)
                self._importance[outcome.device_id] = DISCOUNT * before + (1 - DISCOUNT) * outcome.adapter_delta

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        return {**super().to_json(), "importance": dict(sorted(self._importance.items()))}

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        self._importance = dict(state["importance"])

    def _fitting(self, device_id: str, rank: int) -> Arm | None:
        """The least pruned listed arm at which nothing failed; if all failed, a lower rank at the largest ratio."""
        failed = [PRUNING_RATIO.of(arm) for arm in self._infeasible.get(device_id, ())]
        ratios = sorted({PRUNING_RATIO.of(arm) for arm in self.arms})
        most = self.box.side(PRUNING_RATIO.name)[1]
        fitting = next((ratio for ratio in ratios if ratio > max(failed, default=-1.0)), most)
        base = self.axes.changed(self.box.costliest, PRUNING_RATIO.name, fitting)
        least = int(self.box.side(RANK.name)[0])
        arms = (self.axes.changed(base, RANK.name, lower) for lower in range(rank, least - 1, -1))
        return next((arm for arm in arms if self.is_feasible(device_id, arm)), None)
