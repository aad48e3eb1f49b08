"""The best profile of arms for a fleet, given the time and the gain of each arm: solved exactly, in one pass.

A round of a synchronous run ends with its slowest device, so the value of a profile a = (a_1 ... a_n) is its learning
speed (ours)::

    J(a) = mean_i g(a_i) / max_i T_i(a_i)            gain of a round per second

It is separable once the round time is fixed: for a time tau every device takes its largest gain among the arms that it
finishes in tau. So the maximum of J is found by going through the values of tau that matter, the completion times
themselves. ``fedspine`` maximises J by its estimates, ``oracle`` by the true values.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MAX_CANDIDATES = 4096
"""Most values of tau that are tried; more completion times are thinned geometrically."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Learning speed as a function of the round time."""

    target_s: Floats
    """Candidate round times [num_candidates], ascending, seconds."""
    speed: Floats
    """J at each of them, [num_candidates]."""

    def best(self, tolerance: float = 0.0) -> float:
        """The round time with the largest J; with a tolerance, the shortest time whose J is within this fraction."""
        good = self.speed >= (1.0 - tolerance) * self.speed.max()
        return float(self.target_s[int(np.argmax(good))])

    def at(self, target_s: float) -> float:
        """J at a round time, 0 if no profile ends by then."""
        place = int(np.searchsorted(self.target_s, target_s * (1 + 1e-12), side="right")) - 1
        return float(self.speed[place]) * float(self.target_s[place]) / target_s if place >= 0 else 0.0


def frontier(times_s: Floats, gains: Floats) -> Frontier:
    """J for every round time in which each device can finish some arm.

    Args:
        times_s: [num_devices, num_points], positive; inf = infeasible. Each device has one finite entry or more.
        gains: [num_points], 0 or more.
    """
    order = np.argsort(times_s, axis=1, kind="stable")
    sorted_s = np.take_along_axis(times_s, order, axis=1)
    best = np.maximum.accumulate(gains[order], axis=1)
    shortest = float(sorted_s[:, 0].max())
    candidates = np.unique(sorted_s[np.isfinite(sorted_s) & (sorted_s >= shortest)])
    if candidates.size > MAX_CANDIDATES:
        places = np.geomspace(candidates[0], candidates[-1], MAX_CANDIDATES)
        candidates = np.unique(candidates[np.searchsorted(candidates, places[:-1])])
    total = np.zeros(candidates.size)
    for row_s, row in zip(sorted_s, best, strict=True):
        total += row[np.searchsorted(row_s, candidates, side="right") - 1]
    return Frontier(target_s=candidates, speed=total / len(times_s) / candidates)


def profile(times_s: Floats, gains: Floats, target_s: float) -> npt.NDArray[np.int64]:
    """For each device the point with the largest gain that it finishes in ``target_s``; of equal gains the fastest.

    Shapes as in :func:`frontier`. A device that finishes no point in time gets its fastest.
    """
    fits = times_s <= target_s * (1 + 1e-9)
    value = np.where(fits, gains[None, :], -np.inf)
    value = np.where(fits.any(axis=1, keepdims=True), value, -times_s)
    ties = value >= value.max(axis=1, keepdims=True)
    return np.asarray(np.argmin(np.where(ties, times_s, np.inf), axis=1), dtype=np.int64)
