"""``by_class``: each device class has a given arm, like HetLoRA's ranks by capability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.scheduler.base import Scheduler, SchedulerContext
from edge_runtime.wire.work import Arm


class ByClassScheduler(Scheduler):
    """Arms by device class, as HetLoRA (arXiv 2401.06432) gives ranks by capability; nothing is learnt.

    The context gives the arm of each class. Otherwise the listed arms are dealt, from the cheapest for the slowest
    class to the costliest for the fastest (ours). A device whose arm is infeasible gets the costliest feasible listed
    arm that costs no more.
    """

    name: ClassVar[str] = "by_class"

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        told = self.context
        if not told.device_classes or not (told.class_arms or told.class_capability):
            msg = "scheduler 'by_class' needs the devices' classes, and their arms or speeds: give the fleet's classes"
            raise ConfigError(msg)
        self._by_cost = sorted(self.arms, key=self.axes.costs)
        self._class_arms = {**self._dealt(), **told.class_arms}
        if unknown := sorted(set(told.device_classes.values()) - set(self._class_arms)):
            msg = f"scheduler 'by_class': class {unknown[0]!r} has neither an arm nor a speed"
            raise ConfigError(msg)

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See the base."""
        cheapest = self._by_cost[0]
        return {
            device_id: self.choose_again(round_number, device_id, rng) or cheapest for device_id in sorted(device_ids)
        }

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See the base. A device of unknown class belongs to the class with the cheapest arm."""
        del round_number, rng
        known = self.context.device_classes.get(device_id)
        arm = self._class_arms[known] if known is not None else self._by_cost[0]
        if self.is_feasible(device_id, arm):
            return arm
        smaller = [a for a in self._by_cost if self.axes.costs_at_least(arm, a) and self.is_feasible(device_id, a)]
        left = smaller or [a for a in self._by_cost if self.is_feasible(device_id, a)]
        return left[-1] if smaller else (left[0] if left else None)

    def _dealt(self) -> dict[str, Arm]:
        speeds = sorted(self.context.class_capability.items(), key=lambda item: (item[1], item[0]))
        last = len(self._by_cost) - 1
        steps = max(1, len(speeds) - 1)
        return {name: self._by_cost[round(last * k / steps)] for k, (name, _) in enumerate(speeds)}
