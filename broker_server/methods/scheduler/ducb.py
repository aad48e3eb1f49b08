"""``ducb``: plain discounted UCB on the grid of arms, one bandit for each device."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.grid import GridScheduler
from broker_server.methods.scheduler.ucb import DiscountedCounts

EXPLORATION = 0.2
"""Factor of the bonus; rewards lie in [0, 1], mostly in the lower half."""


class DiscountedUcbScheduler(GridScheduler):
    """D-UCB (Garivier and Moulines, arXiv 0805.3415) on the reward of :mod:`.reward`; each arm once at first."""

    name: ClassVar[str] = "ducb"

    def _indices(self, counts: DiscountedCounts, rng: np.random.Generator) -> Floats:
        del rng
        return counts.upper(EXPLORATION)
