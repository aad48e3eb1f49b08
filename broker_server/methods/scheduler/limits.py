"""Limits on a device's arms (ours), from arms that failed or succeeded on it and on devices of similar speed.

An arm that failed on a device, and every costlier arm, is not played on that device again, unless the device completes
it after all. This rule is exact, and holds for that device only. But many arms lie between the costliest arm that
succeeded and the cheapest arm that failed, and each failure costs an update. So

- between the two an arm half-way in cost is tried, and none if the two are close;
- devices of similar speed (inferred from their completion times) probably have the same hardware: a failure on one
  limits all of them, unless their results contradict each other;
- in each round only some of them, the scouts, try arms beyond those that one of them completed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from broker_server.methods.scheduler.box import ArmBox
from edge_runtime.wire.work import Arm

COST_GAP: Final = 1 / 16
"""Distance in cost of a failed and a completed arm at which no arm between them is tried."""
LIKE_SPEED: Final = 1.25
"""Largest ratio of speeds within a group."""
SCOUT_SHARE: Final = 0.25
"""Share of a group, at least one device, that tries arms beyond the group's completed arms in one round."""

Mask = npt.NDArray[np.bool_]


class Limits:
    """The arms that each device completed, and the points that it may play."""

    def __init__(self, box: ArmBox, points: Sequence[Arm]) -> None:
        self._box = box
        self._axes = box.axes
        self._costlier = np.array([self._axes.costs(arm) for arm in points])
        self._costs = np.array([self._cost(arm) for arm in points])
        self._managed: dict[str, list[Arm]] = {}

    def manage(self, device_id: str, arm: Arm) -> None:
        """Note that a device completed an arm."""
        managed = self._managed.get(device_id, [])
        if not any(self._axes.costs_at_least(other, arm) for other in managed):
            kept = [other for other in managed if not self._axes.costs_at_least(arm, other)]
            self._managed[device_id] = [*kept, arm]

    def allowed(
        self, device_id: str, failed: Mapping[str, Sequence[Arm]], peers: Sequence[str] = (), *, is_scout: bool = True
    ) -> Mask:
        """Points that a device may play, [num_points], at least one: if none is left, the cheapest.

        Args:
            device_id: the device.
            failed: infeasible arms by device; costlier arms are infeasible too.
            peers: devices of similar speed, the device itself included.
            is_scout: whether the device may try arms beyond those that its peers completed.
        """
        mine, own = self._managed.get(device_id, ()), failed.get(device_id, ())
        # The edge is the cost beyond which arms fail. It lies between the costliest arm that was managed and the
        # cheapest that failed. Observations of the peers count for all of them, unless one failed at an arm that costs
        # no more than an arm that another managed. Then they are not alike, and only its own observations count.
        managed, least_failed = self._ends([device_id], failed)
        most_managed, group_failed = self._ends(peers, failed)
        if peers and group_failed > most_managed:
            managed, least_failed = most_managed, group_failed
        # `allowed` is a guess, because it compares arms by one number, their cost. A scout may go half-way to the
        # cheapest arm that failed (anywhere if none did), others no further than the costliest that was managed. An arm
        # that costs no more, on every axis, than one that this device managed is always allowed.
        allowed = self._costs <= _most(managed, least_failed, is_scout=is_scout) + 1e-12
        for arm in mine:
            allowed |= (self._costlier <= self._axes.costs(arm)).all(axis=1)
        # `possible` is certain: an arm that costs no less, on every axis, than a failed arm of this device fails too.
        possible = np.ones(len(allowed), dtype=np.bool_)
        for arm in own:
            possible &= (self._costlier < self._axes.costs(arm)).any(axis=1)
        if not possible.any():
            return np.asarray(self._costs == self._costs.min())
        if not (allowed & possible).any():
            return np.asarray(possible & (self._costs == self._costs[possible].min()))
        return np.asarray(allowed & possible)

    def to_json(self) -> dict[str, Any]:
        """Return the completed arms of all devices, in JSON types."""
        return {i: [self._axes.row(arm) for arm in arms] for i, arms in sorted(self._managed.items())}

    def load_json(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`to_json`."""
        self._managed = {device_id: [self._axes.arm(row) for row in rows] for device_id, rows in state.items()}

    def _cost(self, arm: Arm) -> float:
        """The cost of an arm as one number: the sum of the work on each axis, weighted by the axis's cost."""
        sides = zip(self._box.sides(), self._axes.row(arm), strict=True)
        return sum(axis.cost * (1.0 - x) if axis.removes else axis.cost * x / high for (axis, _, high), x in sides)

    def _ends(self, device_ids: Sequence[str], failed: Mapping[str, Sequence[Arm]]) -> tuple[float, float]:
        """Largest cost that succeeded and least cost that failed on any of some devices (inf if none failed)."""
        managed = [self._cost(arm) for i in device_ids for arm in self._managed.get(i, ())]
        refused = [self._cost(arm) for i in device_ids for arm in failed.get(i, ())]
        return max(managed, default=float(self._costs.min())), min(refused, default=np.inf)


def _most(managed: float, least_failed: float, *, is_scout: bool) -> float:
    """The largest cost to try between one that was managed and one that failed."""
    if not is_scout or least_failed - managed <= COST_GAP:
        return min(managed, least_failed - COST_GAP / 2)
    return 0.5 * (managed + least_failed)


def groups(speeds: Mapping[str, float]) -> list[list[str]]:
    """Devices by speed, so that within a group no two differ by more than :data:`LIKE_SPEED`; slowest group last.

    >>> groups({"a": 8.0, "b": 1.0, "c": 8.4, "d": 1.1})
    [['b', 'd'], ['a', 'c']]
    """
    found: list[list[str]] = []
    first = 0.0
    for device_id, speed in sorted(speeds.items(), key=lambda item: (item[1], item[0])):
        if not found or speed > LIKE_SPEED * first:
            found.append([])
            first = speed
        found[-1].append(device_id)
    return found


def scouts(group: Sequence[str], rng: np.random.Generator) -> set[str]:
    """The devices of a group that try new arms in a round, drawn at random."""
    most = int(np.ceil(SCOUT_SHARE * len(group)))
    return {str(device_id) for device_id in rng.permutation(sorted(group))[:most]}
