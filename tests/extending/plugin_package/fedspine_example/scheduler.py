"""``largest_first``: every device plays the least pruned arm of the largest rank that is not known to be too large."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.scheduler import Scheduler
from edge_runtime.wire.arms import PRUNING_RATIO, RANK, Axis


class LargestFirst(Scheduler):
    """Learns nothing but feasibility, which the base class remembers."""

    name: ClassVar[str] = "largest_first"
    needs: ClassVar[tuple[Axis, ...]] = (PRUNING_RATIO, RANK)

    def _pick(self, round_number: int, device_id: str, candidates: list[int], rng: np.random.Generator) -> int:
        del round_number, device_id, rng
        return min(candidates, key=lambda i: (self.arms[i].pruning_ratio, -self.arms[i].rank))
