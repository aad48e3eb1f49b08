"""Upper confidence bounds of discounted counts: the core that ``fedspine``, ``ducb`` and ``fedlps`` share."""

from __future__ import annotations

from typing import Any

import numpy as np

from broker_server.methods.scheduler.box import Floats


def bonus(counts: Floats, total: float, exploration: float) -> Floats:
    """``exploration * sqrt(log(total) / counts)``; inf for a count of 0, and 0 while ``total`` is at most 1.

    UCB1 (Auer et al. 2002) is counts of plays, their sum, and exploration sqrt(2). Counts may be discounted ones
    (Garivier and Moulines, arXiv 0805.3415).
    """
    width = np.sqrt(max(0.0, float(np.log(max(total, 1.0)))) / np.where(counts > 0, counts, 1.0))
    return np.where(counts > 0, exploration * width, np.inf)


class DiscountedCounts:
    """Discounted count, mean and variance of the rewards of each of ``num_arms`` arms."""

    def __init__(self, num_arms: int, discount: float) -> None:
        self._discount = discount
        self.counts: Floats = np.zeros(num_arms)
        self._sums: Floats = np.zeros(num_arms)
        self._squares: Floats = np.zeros(num_arms)

    @property
    def means(self) -> Floats:
        """Mean reward [num_arms], 0 without observations."""
        return self._sums / np.where(self.counts > 0, self.counts, 1.0)

    @property
    def variances(self) -> Floats:
        """Variance of the reward [num_arms], 0 without observations."""
        squares = self._squares / np.where(self.counts > 0, self.counts, 1.0)
        return np.maximum(0.0, squares - self.means**2)

    def add(self, arm: int, reward: float) -> None:
        """Add one play, and discount all earlier plays."""
        self.counts *= self._discount
        self._sums *= self._discount
        self._squares *= self._discount
        self.counts[arm] += 1.0
        self._sums[arm] += reward
        self._squares[arm] += reward**2

    def upper(self, exploration: float) -> Floats:
        """Upper confidence bounds [num_arms], inf without observations."""
        return self.means + bonus(self.counts, float(self.counts.sum()), exploration)

    def split(self, arm: int) -> None:
        """Insert a second arm after an arm; each gets half of the count."""
        for name in ("counts", "_sums", "_squares"):
            values = getattr(self, name)
            half = values[arm] / 2
            values[arm] = half
            setattr(self, name, np.insert(values, arm + 1, half))

    def to_json(self) -> list[list[float]]:
        """All that is known, of JSON types."""
        return [self.counts.tolist(), self._sums.tolist(), self._squares.tolist()]

    @classmethod
    def from_json(cls, state: list[Any], discount: float) -> DiscountedCounts:
        """Go on from a :meth:`to_json`."""
        new = cls(len(state[0]), discount)
        new.counts, new._sums, new._squares = (np.array(values, dtype=np.float64) for values in state)
        return new
