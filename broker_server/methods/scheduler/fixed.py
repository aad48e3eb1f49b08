"""``fixed``: each device keeps one arm; arms are dealt in turn when devices first appear."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from broker_server.methods.scheduler.base import Scheduler, SchedulerContext
from edge_runtime.wire.work import Arm


class FixedScheduler(Scheduler):
    """Deals the arms in the configured order; an infeasible arm is replaced by the next feasible one."""

    name: ClassVar[str] = "fixed"

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        self._dealt: dict[str, int] = {}

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        return {**super().to_json(), "dealt": dict(self._dealt)}

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        self._dealt = dict(state["dealt"])

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number, rng
        dealt = self._dealt.setdefault(device_id, len(self._dealt) % len(self.arms))
        return next((i for i in candidates if i >= dealt), candidates[0])
