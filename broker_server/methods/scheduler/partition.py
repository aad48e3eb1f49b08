"""A smooth, discounted UCB over a partition of (ratio, rank) that is refined where it is played.

A tree over the box of arms; its leaves are kept as a list. A leaf has a discounted count N, a discounted sum of gains,
and the centroid of its plays. It is split at the played point, along the longer side, until that side is below a bound:
so the partition is fine where arms are good. The upper confidence bound of a point x is::

    U(x) = mean(x) + c sqrt( log(1 + sum N) / (n(x) + n0) )
    n(x) = sum_l N_l K(x, x_l),    mean(x) = (n0 prior(x) + sum_l N_l K(x, x_l) mean_l) / (n0 + n(x))

with a Gaussian kernel K over leaves' centroids: an estimate borrows from neighbouring plays ("smooth"); n0 plays of a
prior gain stand for what is believed at first. ``mean`` is then made monotone: gain does not grow with the ratio and
does not fall with the rank.

A smooth UCB that refines a partition of the continuous space is reported of FedSpine (arXiv 2501.02438, third-party
notes); tree, split rule and discount are ours after FedMP and FedLPS, and so are kernel, prior and monotony.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from broker_server.methods.scheduler.base import ArmBox
from broker_server.methods.scheduler.reward import Floats, prior_gain
from broker_server.methods.scheduler.ucb import bonus
from edge_runtime.wire.messages import Arm

DISCOUNT: Final = 0.98
"""Counts and sums are multiplied by this after every round."""
EXPLORATION: Final = 0.03
"""c."""
PRIOR_PLAYS: Final = 6.0
"""n0."""
WIDTH: Final = 0.15
"""Standard deviation of the kernel, in sides of the box."""
SMALLEST_SIDE: Final = 1 / 16
"""A leaf is not split along a side that would get below this, in sides of the box."""


@dataclasses.dataclass(slots=True)
class Leaf:
    """A cell of the unit square (ratio, log rank) and what was seen in it."""

    low: tuple[float, float]
    high: tuple[float, float]
    count: float = 0.0
    gain_sum: float = 0.0
    place_sum: tuple[float, float] = (0.0, 0.0)

    def holds(self, place: tuple[float, float]) -> bool:
        """Whether a place lies in the cell; the upper sides belong to it only at the edge of the square."""
        return all(
            low <= x < high or (x == high == 1.0) for low, x, high in zip(self.low, place, self.high, strict=True)
        )

    def add(self, place: tuple[float, float], gain: float) -> None:
        """Count one play."""
        self.count += 1.0
        self.gain_sum += gain
        self.place_sum = (self.place_sum[0] + place[0], self.place_sum[1] + place[1])

    def fade(self, discount: float) -> None:
        """Let what was seen count less."""
        self.count *= discount
        self.gain_sum *= discount
        self.place_sum = (self.place_sum[0] * discount, self.place_sum[1] * discount)

    def split(self, place: tuple[float, float]) -> list[Leaf]:
        """The two cells of a split at a place along the longer side; itself when that side is small.

        A place too near to a side to cut there cuts in the middle. Each half keeps half of what was seen, at the same
        mean: where in the cell it was seen is kept by the centroid.
        """
        axis = int(self.high[1] - self.low[1] > self.high[0] - self.low[0])
        low, high = self.low[axis], self.high[axis]
        if high - low < 2 * SMALLEST_SIDE:
            return [self]
        cut = place[axis] if min(place[axis] - low, high - place[axis]) >= SMALLEST_SIDE else (low + high) / 2
        halves = []
        for ends in ((low, cut), (cut, high)):
            lows, highs = list(self.low), list(self.high)
            lows[axis], highs[axis] = ends
            half = Leaf((lows[0], lows[1]), (highs[0], highs[1]), self.count, self.gain_sum, self.place_sum)
            half.fade(0.5)
            halves.append(half)
        return halves


class Partition:
    """What a fleet knows of the gain of arms: one partition for all devices, for gain is what they share."""

    def __init__(self, box: ArmBox, points: Sequence[Arm]) -> None:
        self._box = box
        self.leaves = [Leaf((0.0, 0.0), (1.0, 1.0))]
        self._places: Floats = np.array([self.place(arm) for arm in points])
        ratios = np.array([arm.pruning_ratio for arm in points])
        ranks = np.array([arm.rank for arm in points], dtype=np.float64)
        self._prior = prior_gain(ratios, ranks, box.min_rank, box.max_rank)
        self._grid = (len(set(ratios.tolist())), len(set(ranks.tolist())))

    def place(self, arm: Arm) -> tuple[float, float]:
        """Where an arm lies in the unit square; arms outside the box at its edge."""
        box = self._box
        ratio_span = box.max_ratio - box.min_ratio or 1.0
        rank_span = float(np.log(box.max_rank / box.min_rank)) or 1.0
        x = (arm.pruning_ratio - box.min_ratio) / ratio_span
        y = float(np.log(arm.rank / box.min_rank)) / rank_span
        return min(1.0, max(0.0, x)), min(1.0, max(0.0, y))

    def observe(self, plays: Sequence[tuple[Arm, float]]) -> None:
        """Count the plays of one round with their gains, splitting the leaves that were played; then discount."""
        for arm, gain in plays:
            place = self.place(arm)
            at = next(i for i, leaf in enumerate(self.leaves) if leaf.holds(place))
            self.leaves[at].add(place, gain)
            self.leaves[at : at + 1] = self.leaves[at].split(place)
        for leaf in self.leaves:
            leaf.fade(DISCOUNT)

    def estimate(self) -> tuple[Floats, Floats]:
        """Mean gain and exploration bonus of every point, [num_points] each."""
        seen = [leaf for leaf in self.leaves if leaf.count > 1e-6]
        weight, total = np.zeros(len(self._places)), np.zeros(len(self._places))
        if seen:
            counts = np.array([leaf.count for leaf in seen])
            centroids = np.array([leaf.place_sum for leaf in seen]) / counts[:, None]
            squared = ((self._places[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)
            kernel = np.exp(-0.5 * squared / WIDTH**2)
            weight = kernel @ counts
            total = kernel @ np.array([leaf.gain_sum for leaf in seen])
        mean = _monotone((PRIOR_PLAYS * self._prior + total) / (PRIOR_PLAYS + weight), self._grid)
        plays = sum(leaf.count for leaf in self.leaves)
        return mean, bonus(weight + PRIOR_PLAYS, 1.0 + plays, EXPLORATION)

    def state(self) -> list[list[Any]]:
        """All leaves, of JSON types."""
        return [
            [list(leaf.low), list(leaf.high), leaf.count, leaf.gain_sum, list(leaf.place_sum)] for leaf in self.leaves
        ]

    def restore(self, state: list[list[Any]]) -> None:
        """Go on from a :meth:`state`."""
        self.leaves = [
            Leaf((low[0], low[1]), (high[0], high[1]), count, gain_sum, (place_sum[0], place_sum[1]))
            for low, high, count, gain_sum, place_sum in state
        ]


def _monotone(gain: Floats, grid: tuple[int, int]) -> Floats:
    """Not growing with the ratio (axis 0), not falling with the rank (axis 1): midway between the two envelopes."""
    g = gain.reshape(grid)
    g = 0.5 * (np.minimum.accumulate(g, axis=0) + np.maximum.accumulate(g[::-1], axis=0)[::-1])
    g = 0.5 * (np.maximum.accumulate(g, axis=1) + np.minimum.accumulate(g[:, ::-1], axis=1)[:, ::-1])
    return g.ravel()
