"""``random``: every device draws one of its feasible arms in every round."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.scheduler.base import Scheduler


class RandomScheduler(Scheduler):
    """Learns only feasibility; a baseline for other schedulers."""

    name: ClassVar[str] = "random"

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number, device_id
        return candidates[int(rng.integers(len(candidates)))]
