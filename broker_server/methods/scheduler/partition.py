"""A smooth, discounted UCB over a partition of the box of arms that is refined where it is played.

A tree over the box of arms; its leaves are kept as a list. A leaf has a discounted count N, a discounted sum of gains,
and the centroid of its plays. It is split at the played point, along the longest side, until that side is below a
bound: so the partition is fine where arms are good. The upper confidence bound of a point x is::

    U(x) = mean(x) + c sqrt( log(1 + sum N) / (n(x) + n0) )
    n(x) = sum_l N_l K(x, x_l),    mean(x) = (n0 prior(x) + sum_l N_l K(x, x_l) mean_l) / (n0 + n(x))

with a Gaussian kernel K over leaves' centroids: an estimate uses neighbouring plays too ("smooth"). The prior gain
counts as n0 plays. ``mean`` is then made monotone: along each axis the gain does not fall with the cost.

A smooth UCB that refines a partition of the continuous space is reported of FedSpine (arXiv 2501.02438, third-party
notes); tree, split rule and discount are ours after FedMP and FedLPS, and so are kernel, prior and monotony.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from broker_server.methods.scheduler.box import ArmBox, Floats
from broker_server.methods.scheduler.reward import prior_gain
from broker_server.methods.scheduler.ucb import bonus
from edge_runtime.wire.work import Arm

DISCOUNT: Final = 0.98
"""Counts and sums are multiplied by this after every round."""
EXPLORATION: Final = 0.03
"""The constant c."""
PRIOR_PLAYS: Final = 6.0
"""The constant n0."""
WIDTH: Final = 0.15
"""Standard deviation of the kernel, in sides of the box."""
SMALLEST_SIDE: Final = 1 / 16
"""A leaf is not split along a side that would get below this, in sides of the box."""


@dataclasses.dataclass(slots=True)
class Leaf:
    """A cell of the unit cube (:meth:`.ArmBox.place`) with the discounted plays in it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    place_sum: tuple[float, ...]
    count: float = 0.0
    gain_sum: float = 0.0

    def holds(self, place: tuple[float, ...]) -> bool:
        """Return whether a place lies in the cell; its upper sides belong to it only at the edge of the cube."""
        return all(
            low <= x < high or (x == high == 1.0) for low, x, high in zip(self.low, place, self.high, strict=True)
        )

    def add(self, place: tuple[float, ...], gain: float) -> None:
        """Count one play."""
        self.count += 1.0
        self.gain_sum += gain
        self.place_sum = tuple(total + x for total, x in zip(self.place_sum, place, strict=True))

    def fade(self, discount: float) -> None:
        """Discount earlier plays."""
        self.count *= discount
        self.gain_sum *= discount
        self.place_sum = tuple(total * discount for total in self.place_sum)

    def split(self, place: tuple[float, ...]) -> list[Leaf]:
        """Split the cell in two at a place along the longest side; return the cell itself if that side is small.

        If the place is too near to a side, the cell is split in the middle. Each half gets half of the count at the
        same mean, and keeps the centroid of the plays.
        """
        sides = [high - low for low, high in zip(self.low, self.high, strict=True)]
        longest = max(sides, default=0.0)
        if longest < 2 * SMALLEST_SIDE:
            return [self]
        axis = sides.index(longest)
        low, high = self.low[axis], self.high[axis]
        cut = place[axis] if min(place[axis] - low, high - place[axis]) >= SMALLEST_SIDE else (low + high) / 2
        halves = []
        for ends in ((low, cut), (cut, high)):
            lows, highs = list(self.low), list(self.high)
            lows[axis], highs[axis] = ends
            half = Leaf(tuple(lows), tuple(highs), self.place_sum, self.count, self.gain_sum)
            half.fade(0.5)
            halves.append(half)
        return halves


class Partition:
    """The estimated gain of arms: one partition for all devices, because they share the gain."""

    def __init__(self, box: ArmBox, points: Sequence[Arm]) -> None:
        self._box = box
        nothing = (0.0,) * len(box.axes)
        self.leaves = [Leaf(low=nothing, high=(1.0,) * len(box.axes), place_sum=nothing)]
        self._places: Floats = box.places(box.rows(points))
        self._prior = prior_gain(box, points)
        self._grid = tuple(len(box.values(axis.name)) for axis in box.axes)

    def observe(self, plays: Sequence[tuple[Arm, float]]) -> None:
        """Count the plays of one round with their gains, splitting the leaves that were played; then discount."""
        for arm, gain in plays:
            place = self._box.place(arm)
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
        mean = self._monotone((PRIOR_PLAYS * self._prior + total) / (PRIOR_PLAYS + weight))
        plays = sum(leaf.count for leaf in self.leaves)
        return mean, bonus(weight + PRIOR_PLAYS, 1.0 + plays, EXPLORATION)

    def to_json(self) -> list[list[Any]]:
        """All leaves, of JSON types."""
        return [
            [list(leaf.low), list(leaf.high), leaf.count, leaf.gain_sum, list(leaf.place_sum)] for leaf in self.leaves
        ]

    def load_json(self, state: list[list[Any]]) -> None:
        """Go on from a :meth:`to_json`."""
        self.leaves = [
            Leaf(tuple(low), tuple(high), tuple(place_sum), count, gain_sum)
            for low, high, count, gain_sum, place_sum in state
        ]

    def _monotone(self, gain: Floats) -> Floats:
        """Make the gain monotone in the cost along each axis: the mean of the two envelopes."""
        g = gain.reshape(self._grid)
        for number, axis in enumerate(self._box.axes):
            upward, downward = (np.minimum, np.maximum) if axis.removes else (np.maximum, np.minimum)
            backward = np.flip(downward.accumulate(np.flip(g, number), axis=number), number)
            g = 0.5 * (upward.accumulate(g, axis=number) + backward)
        return g.ravel()
