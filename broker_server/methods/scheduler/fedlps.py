"""``fedlps``: a bandit over the pruning ratio alone, after FedLPS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from broker_server.methods.scheduler.base import ArmOutcome, Scheduler, SchedulerContext
from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.reward import credit_round
from broker_server.methods.scheduler.ucb import DiscountedCounts
from edge_runtime.wire.arms import PRUNING_RATIO, Axis
from edge_runtime.wire.work import Arm

START_INTERVALS: Final = 4
"""Equal parts of the ratio's range at first."""
SMALLEST: Final = 1 / 16
"""Intervals are not split below this width."""
DISCOUNT: Final = 0.98
EXPLORATION: Final = 0.2


class FedLpsScheduler(Scheduler):
    """One bandit for each device over intervals of the ratio; other axes are at their costliest: the largest rank.

    FedLPS (arXiv 2412.07216) adapts sparse ratios with a bandit of the UCB-V family (P-UCBV) that splits the continuous
    range as it goes. Only the idea is taken: an interval's index is its mean reward plus a UCB-V width (Audibert et al.
    2009: it shrinks with the variance), a ratio is drawn uniformly from the chosen interval, and the interval is split
    there. The reward is the project's own, the discount too; FedLPS's learnable sparse patterns are not part of this.
    """

    name: ClassVar[str] = "fedlps"
    needs: ClassVar[tuple[Axis, ...]] = (PRUNING_RATIO,)

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        self._ratios = self.box.values(PRUNING_RATIO.name)
        self._edges: dict[str, list[float]] = {}
        self._known: dict[str, DiscountedCounts] = {}
        self._deepest: dict[str, float] = {}

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See the base."""
        return {
            device_id: self.choose_again(round_number, device_id, rng) or self.box.cheapest
            for device_id in sorted(device_ids)
        }

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See the base."""
        del round_number
        left = [r for r in self._ratios if self.is_feasible(device_id, self._arm(r))]
        if not left:
            return None
        edges, known = self._of(device_id)
        spread = np.sqrt(2 * known.variances * np.log(1 + known.counts.sum()) / np.maximum(known.counts, 1e-9))
        index = known.upper(EXPLORATION) + np.where(known.counts > 0, spread, 0.0)
        lots = rng.permutation(len(index))
        homes = [self._home(edges, ratio) for ratio in left]
        chosen = max(set(homes), key=lambda k: (float(index[k]), int(lots[k])))
        return self._arm(float(rng.choice([r for r, home in zip(left, homes, strict=True) if home == chosen])))

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """See the base."""
        earned = credit_round(outcomes, self._deepest)
        for outcome in outcomes:
            if outcome.device_id not in earned:
                continue
            edges, known = self._of(outcome.device_id)
            least, most = self.box.side(PRUNING_RATIO.name)
            ratio = min(most, max(least, PRUNING_RATIO.of(outcome.arm)))
            home = self._home(edges, ratio)
            known.add(home, earned[outcome.device_id].reward)
            if min(ratio - edges[home], edges[home + 1] - ratio) >= SMALLEST:
                edges.insert(home + 1, ratio)
                known.split(home)
            self._deepest[outcome.device_id] = max(self._deepest.get(outcome.device_id, 0.0), outcome.sparsity)

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        return {
            **super().to_json(),
            "edges": {device_id: list(edges) for device_id, edges in sorted(self._edges.items())},
            "known": {device_id: known.to_json() for device_id, known in sorted(self._known.items())},
            "deepest": dict(sorted(self._deepest.items())),
        }

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        self._edges = {device_id: list(edges) for device_id, edges in state["edges"].items()}
        self._known = {
            device_id: DiscountedCounts.from_json(known, DISCOUNT) for device_id, known in state["known"].items()
        }
        self._deepest = dict(state["deepest"])

    def _of(self, device_id: str) -> tuple[list[float], DiscountedCounts]:
        if device_id not in self._edges:
            ends = self.box.side(PRUNING_RATIO.name)
            self._edges[device_id] = np.linspace(*ends, START_INTERVALS + 1).tolist()
            self._known[device_id] = DiscountedCounts(START_INTERVALS, DISCOUNT)
        return self._edges[device_id], self._known[device_id]

    def _arm(self, ratio: float) -> Arm:
        return self.axes.changed(self.box.costliest, PRUNING_RATIO.name, ratio)

    @staticmethod
    def _home(edges: list[float], ratio: float) -> int:
        inner: Floats = np.array(edges[1:-1])
        return int(np.searchsorted(inner, ratio, side="right"))
