"""``costliest``: each device plays the costliest arm that is not known to be infeasible on it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.scheduler.base import Scheduler


class CostliestScheduler(Scheduler):
    """Memory and deadline decide (ours): a device that refuses an arm, or is late with it, gets the next cheaper arm.

    Of two arms that cannot be compared, the arm with the larger cost on the first axis counts as costlier.
    """

    name: ClassVar[str] = "costliest"

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number, device_id, rng
        return max(candidates, key=lambda i: self.axes.costs(self.arms[i]))
