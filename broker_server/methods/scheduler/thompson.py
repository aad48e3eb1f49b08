"""``thompson``: discounted Thompson sampling on the grid of arms, one bandit for each device."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.grid import GridScheduler
from broker_server.methods.scheduler.ucb import DiscountedCounts

PRIOR_MEAN = 0.5
"""Middle of the reward's range."""
NOISE = 0.2
"""Standard deviation of a reward that the posterior assumes."""


class ThompsonScheduler(GridScheduler):
    """A normal posterior for each arm's mean reward, one play's worth of prior at the middle of the range.

    Discounted as in discounted Thompson sampling (Raj and Kalyani, arXiv 1707.09727), there for Bernoulli rewards;
    normal ones are ours.
    """

    name: ClassVar[str] = "thompson"

    def _indices(self, counts: DiscountedCounts, rng: np.random.Generator) -> Floats:
        plays = counts.counts + 1.0
        mean = (counts.counts * counts.means + PRIOR_MEAN) / plays
        return mean + NOISE / np.sqrt(plays) * rng.standard_normal(len(plays))
