"""A model of the time of an arm on each device, fitted to completion times without prior knowledge (ours).

A device's completion time is linear in the work of an arm::

    T_i(p, r) = theta_i . [ 1, 1 - p, (1 - p) r / R, r / R ],  theta_i >= 0

(fixed work; work on kept units; LoRA work on kept units, and bytes of factors whose pruned side shrank; bytes of
factors whose side never shrinks). These are the features of LoRA's two axes. In general there is a feature for every
set of axes: the product of the device's work on each of them (:meth:`.ArmBox.work`).

Devices differ mostly by a factor, so theta_i is shrunk towards ``scale_i * shape``. One observation of a device gives
its scale, and the observations of the fleet give the shape. Further observations of the device move theta_i away from
the shape if the device differs (a slow link). Devices of similar speed are moved together as far as their differences
may be chance; otherwise the slowest device, which ends the round, would often be the one with the largest error. The
fit is a weighted ridge regression on relative errors. Older observations count less, and are dropped once a new one
contradicts them: a device that suddenly takes three times as long is known after one round.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from broker_server.methods.scheduler.box import ArmBox, Floats
from broker_server.methods.scheduler.limits import groups
from edge_runtime.wire.arms import Axes
from edge_runtime.wire.work import Arm

DISCOUNT: Final = 0.98
"""Weight of an observation is multiplied by this for each later one of the same device."""
SURPRISE: Final = 0.25
"""Absolute log ratio of observed to predicted time above which a device counts as changed (or four usual errors).

Of a device that has changed, only later observations count."""
NOISE: Final = 0.05
"""Relative standard deviation of a completion time that the regression assumes."""
SHAPE_STRENGTH: Final = 2.0
"""Weight of the prior shape, in observations."""
DOUBTED: Final = 0.1
"""Weight of a time that is shorter than expected by as much, until a second one in a row confirms it.

A slow device delays all others, so a longer time counts at once; a shorter time can wait a round.
"""
MAX_OBSERVATIONS: Final = 64
"""Observations kept for each device; the weight of an older one is below 0.3."""

FIXED: Final = 0.1
"""Prior of the share of the largest arm's time that depends on no axis; the axes declare the other shares."""


@dataclasses.dataclass(slots=True)
class _Seen:
    """Observations of one device."""

    rows: list[list[float]]
    seconds: list[float]
    weights: list[float]


class TimeModel:
    """Completion times of one fleet over one box of arms."""

    def __init__(self, box: ArmBox) -> None:
        self._box = box
        self._sets = _sets(len(box.axes))
        self._prior = _prior_shape(box.axes, self._sets)
        self._seen: dict[str, _Seen] = {}
        self._usual_error = NOISE
        self._shape = self._prior
        self._theta: dict[str, Floats] = {}

    def knows(self, device_id: str) -> bool:
        """Return whether a completion time of the device was seen."""
        return device_id in self._seen

    def observe(self, device_id: str, arm: Arm, completion_s: float) -> None:
        """Add a completion time (positive, seconds); :meth:`fit` makes it count."""
        seen = self._seen.setdefault(device_id, _Seen([], [], []))
        weight = 1.0
        if device_id in self._theta:
            error = self._error_of(device_id, arm, completion_s)
            bound = max(SURPRISE, 4 * self._usual_error)
            if abs(error) <= bound:
                self._usual_error += 0.02 * (1.25 * abs(error) - self._usual_error)
            elif error > 0 or len(seen.seconds) < 3 or seen.weights[-1] == DOUBTED:
                seen = self._seen[device_id] = _Seen([], [], [])
            else:
                weight = DOUBTED
        seen.weights = [*(earlier * DISCOUNT for earlier in seen.weights[-MAX_OBSERVATIONS + 1 :]), weight]
        seen.seconds = [*seen.seconds[-MAX_OBSERVATIONS + 1 :], completion_s]
        seen.rows = [*seen.rows[-MAX_OBSERVATIONS + 1 :], self._box.axes.row(arm)]

    def fit(self) -> None:
        """Estimate the shape from all devices, then every device's coefficients."""
        if not self._seen:
            return
        rows = {device_id: self._rows(seen) for device_id, seen in self._seen.items()}
        shape = self._shape
        for _ in range(3):
            scales = {device_id: _scale(*row, shape) for device_id, row in rows.items()}
            shape = self._fit_shape(rows, scales)
        self._shape = shape
        scales = {device_id: _scale(*row, shape) for device_id, row in rows.items()}
        theta = {device_id: _fit_device(*row, scales[device_id] * shape) for device_id, row in rows.items()}
        factors = self._shrinkage({device_id: float(values.sum()) for device_id, values in theta.items()})
        self._theta = {device_id: factors[device_id] * values for device_id, values in theta.items()}

    def predict(self, device_ids: Sequence[str], points: Floats) -> Floats:
        """Seconds [num_devices, num_points] of :meth:`features`; unknown devices as the slowest known."""
        known = np.array(list(self._theta.values()))
        slowest = known[int(np.argmax(known.sum(axis=1)))] if len(known) else self._prior
        theta = np.array([self._theta.get(device_id, slowest) for device_id in device_ids])
        return np.maximum(theta @ points.T, 1e-9)

    def speed(self, device_id: str) -> float:
        """Predicted time of the largest arm on a known device, seconds (so larger is slower)."""
        theta = self._theta.get(device_id)
        return float(np.median(self._seen[device_id].seconds)) if theta is None else float(theta.sum())

    def error(self, device_id: str) -> float:
        """Relative standard error of a known device's predicted times: usual error over the root of their weight."""
        return self._usual_error / float(np.sqrt(sum(self._seen[device_id].weights)))

    def features(self, arms: Sequence[Arm]) -> Floats:
        """Return the regression's features of arms, [num_arms, 2^num_axes]."""
        return self._features(self._box.rows(arms))

    def to_json(self) -> dict[str, Any]:
        """All observations, of JSON types."""
        return {
            "seen": {i: [list(map(list, s.rows)), s.seconds, s.weights] for i, s in sorted(self._seen.items())},
            "usual_error": self._usual_error,
            "shape": self._shape.tolist(),
            "theta": {device_id: theta.tolist() for device_id, theta in sorted(self._theta.items())},
        }

    def load_json(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`to_json`."""
        self._seen = {
            device_id: _Seen([list(row) for row in rows], list(seconds), list(weights))
            for device_id, (rows, seconds, weights) in state["seen"].items()
        }
        self._usual_error = state["usual_error"]
        self._shape = np.array(state["shape"])
        self._theta = {device_id: np.array(theta) for device_id, theta in state["theta"].items()}

    def _features(self, rows: Floats) -> Floats:
        work = self._box.work(rows)
        return np.stack([work[:, list(axes)].prod(axis=1) for axes in self._sets], axis=1)

    def _error_of(self, device_id: str, arm: Arm, completion_s: float) -> float:
        """Logarithm of observed over predicted time."""
        return float(np.log(completion_s / (self.features([arm])[0] @ self._theta[device_id])))

    def _shrinkage(self, speeds: dict[str, float]) -> dict[str, float]:
        """Factors that move devices of like speed together, as far as their differences are explained by error.

        James and Stein's shrinkage of the logarithms, with the part of the variance that standard errors leave.
        """
        factors: dict[str, float] = {}
        for group in groups(speeds):
            logs = np.log([speeds[device_id] for device_id in group])
            noise = float(np.mean([self.error(device_id) ** 2 for device_id in group]))
            spread = float(np.var(logs, ddof=1)) if len(group) > 1 else np.inf
            pull = min(1.0, noise / spread) if spread > 0 else 1.0
            moves = np.exp(pull * (logs.mean() - logs))
            factors |= {device_id: float(move) for device_id, move in zip(group, moves, strict=True)}
        return factors

    def _rows(self, seen: _Seen) -> tuple[Floats, Floats, Floats]:
        return self._features(np.array(seen.rows, dtype=np.float64)), np.array(seen.seconds), np.array(seen.weights)

    def _fit_shape(self, rows: dict[str, tuple[Floats, Floats, Floats]], scales: dict[str, float]) -> Floats:
        """Ridge towards the prior shape on times over scales, relative errors; scaled to sum to 1."""
        prior = self._prior
        spread = 0.5 * prior + 0.05
        a = SHAPE_STRENGTH * np.diag((NOISE / spread) ** 2)
        b = a @ prior
        for device_id, (x, seconds, weights) in sorted(rows.items()):
            relative = x * (scales[device_id] / seconds)[:, None]
            a += (relative * weights[:, None]).T @ relative
            b += relative.T @ weights
        shape = _nonnegative(a, b, prior)
        return np.asarray(shape / shape.sum())


def _sets(num_axes: int) -> list[tuple[int, ...]]:
    """All sets of axes, each ascending, in lexicographic order.

    >>> _sets(2)
    [(), (0,), (0, 1), (1,)]
    """
    sizes = range(num_axes + 1)
    return sorted(axes for size in sizes for axes in itertools.combinations(range(num_axes), size))


def _prior_shape(axes: Axes, sets: Sequence[tuple[int, ...]]) -> Floats:
    """Prior coefficients; they sum to 1, the time of the largest arm.

    The share of a set follows from its last axis: its own time for the axis alone; its joint time, shared equally, for
    the sets with axes before it.
    """
    known = tuple(axes)
    shares = [FIXED]
    for one in sets[1:]:
        last = known[one[-1]]
        shares.append(last.time_alone if len(one) == 1 else last.time_joint / (2 ** one[-1] - 1))
    return np.array(shares) / sum(shares)


def _scale(x: Floats, seconds: Floats, weights: Floats, shape: Floats) -> float:
    """Time of the largest arm on a device: weighted geometric mean of seconds over the shape's."""
    return float(np.exp(np.average(np.log(seconds / (x @ shape)), weights=weights)))


def _fit_device(x: Floats, seconds: Floats, weights: Floats, prior: Floats) -> Floats:
    spread = 0.25 * prior + 0.03 * prior.sum()
    a = np.diag((NOISE / spread) ** 2)
    b = a @ prior
    relative = x / (x @ prior)[:, None]
    a = a + (relative * weights[:, None]).T @ relative
    b = b + relative.T @ (weights * seconds / (x @ prior))
    return _nonnegative(a, b, prior)


def _nonnegative(a: Floats, b: Floats, start: Floats) -> Floats:
    """Minimise x a x / 2 - b x over x >= 0 by coordinate descent; ``a`` is positive definite.

    Times that are eight orders of magnitude apart make ``a`` singular in float64. Coordinate descent needs its diagonal
    alone.

    Raises:
        LinAlgError: a number is not finite.
    """
    try:
        x = np.linalg.solve(a, b)
        if (x >= 0).all():
            return np.asarray(x)
    except np.linalg.LinAlgError:
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise
    x = start.copy()
    for _ in range(60):
        before = x.copy()
        for k in range(len(x)):
            x[k] = max(0.0, x[k] + (b[k] - a[k] @ x) / a[k, k])
        if np.abs(x - before).max() <= 1e-9 * max(1e-12, np.abs(x).max()):
            break
    return x
