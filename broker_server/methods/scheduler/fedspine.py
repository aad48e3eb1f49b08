"""``fedspine``: a smooth, discounted UCB that refines the box of arms, with a model of each device's time.

Reported of FedSpine (arXiv 2501.02438): an online bandit on the server picks (ratio, rank) for each device and round
with no prior knowledge of the devices [abstract]; it is a smooth UCB over a refined partition of the continuous space,
and its reward weighs loss improvement, pruning progress and importance of the update against the completion time
relative to the others [third-party notes]. Ours is all of how:

*Why not one bandit per device on the reward.* The reward of one device depends on the mean time of all, so while they
explore, every device's rewards move; and a round ends with its slowest device, so of 80 devices that explore one in
twenty rounds, some device delays every round. The reward is therefore split into a shared and a separate part:

1. *Gain* (the reward's numerator) is shared by all devices: one :class:`.Partition` for the fleet. Gains are divided
   by the round's level (they shrink as training goes on) and by the device's own (data differ).
2. *Time* is each device's own: :class:`.TimeModel`.
3. *The round time to aim at*, tau, maximises the learning speed J of :mod:`.profile` under both. J is flat around its
   maximum, so of the times within 2 % of it the shortest is taken, and tau stays while it is as good as that.
4. *Each device* then maximises the optimistic reward (U(x) for the gain, tau for mean T) over the points that it is
   expected to finish by tau. So it explores only where that costs nobody time: fast devices, which have time to spare,
   learn the gain for all, and prune nothing they need not.
5. *Feasibility*: an arm that a device refused or did not finish in time, and every costlier one, is not played again
   unless the device manages it after all; :mod:`.limits` keeps devices from failing more than a few times each.

A new device plays an arm from the cheaper (more pruned) half; these arms are spread, so that the first round shows the
shape of the time model. Device classes are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler.base import ArmOutcome, Scheduler, SchedulerContext
from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.limits import Limits, groups, scouts
from broker_server.methods.scheduler.partition import Partition
from broker_server.methods.scheduler.profile import frontier
from broker_server.methods.scheduler.reward import KAPPA, Credit, completion_s, credit_round
from broker_server.methods.scheduler.time_model import TimeModel
from edge_runtime.wire.work import Arm

TOLERANCE: Final = 0.02
"""Fraction of the learning speed that a shorter round may cost."""
CAUTION: Final = 3.0
"""Standard errors that are added to a predicted time when it is compared with tau."""
LEVEL_PRIOR: Final = 4.0
"""Weight of the prior of a device's gain level, which is 1, in plays."""
LEVEL_DISCOUNT: Final = 0.95
"""Discount of a device's gain level per round."""


class FedSpineScheduler(Scheduler):
    """See the module."""

    name: ClassVar[str] = "fedspine"

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        self._points = self.box.lattice()
        self._rows = self.box.rows(self._points)
        self._gain = Partition(self.box, self._points)
        self._time = TimeModel(self.box)
        self._features = self._time.features(self._points)
        self._index = {arm: i for i, arm in enumerate(self._points)}
        self._limits = Limits(self.box, self._points)
        self._deepest: dict[str, float] = {}
        self._levels: dict[str, tuple[float, float]] = {}
        self._target_s: float | None = None

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See the base."""
        del round_number
        known = [device_id for device_id in sorted(device_ids) if self._time.knows(device_id)]
        unknown = [device_id for device_id in sorted(device_ids) if not self._time.knows(device_id)]
        choices = self._explore(unknown, rng)
        if known:
            mean, extra = self._gain.estimate()
            times_s = np.where(self._allowed(known, rng), self._time.predict(known, self._features), np.inf)
            speeds = frontier(times_s, mean)
            target_s = speeds.best(TOLERANCE)
            if self._target_s is None or speeds.at(self._target_s) < speeds.at(target_s):
                self._target_s = target_s
            choices |= {
                device_id: self._best(row_s, mean + extra, self._target_s, self._time.error(device_id))
                for device_id, row_s in zip(known, times_s, strict=True)
            }
        return choices

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See the base."""
        del round_number
        if not any(self.is_feasible(device_id, arm) for arm in self._points):
            return None
        if self._target_s is None or not self._time.knows(device_id):
            return self._explore([device_id], rng)[device_id]
        allowed = self._limits.allowed(device_id, self._infeasible, is_scout=False)
        times_s = np.where(allowed, self._time.predict([device_id], self._features), np.inf)
        gain = np.add(*self._gain.estimate())
        return self._best(times_s[0], gain, self._target_s, self._time.error(device_id))

    def observe(self, outcome: ArmOutcome) -> None:
        """See the base."""
        super().observe(outcome)
        if outcome.outcome is Outcome.ACCEPTED:
            self._limits.manage(outcome.device_id, outcome.arm)
        seconds = completion_s(outcome) if outcome.outcome in {Outcome.ACCEPTED, Outcome.TIMED_OUT} else None
        if seconds is not None:
            self._time.observe(outcome.device_id, outcome.arm, seconds)

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """See the base."""
        self._time.fit()
        earned = credit_round(outcomes, self._deepest)
        arms = {outcome.device_id: outcome.arm for outcome in outcomes if outcome.device_id in earned}
        if earned:
            self._gain.observe(self._levelled(arms, earned))
        for outcome in outcomes:
            if outcome.device_id in earned:
                deepest = self._deepest.get(outcome.device_id, 0.0)
                self._deepest[outcome.device_id] = max(deepest, outcome.sparsity)

    def to_json(self) -> dict[str, Any]:
        """See the base."""
        return {
            **super().to_json(),
            "gain": self._gain.to_json(),
            "time": self._time.to_json(),
            "limits": self._limits.to_json(),
            "deepest": dict(sorted(self._deepest.items())),
            "levels": {device_id: list(level) for device_id, level in sorted(self._levels.items())},
            "target_s": self._target_s,
        }

    def load_json(self, state: dict[str, Any]) -> None:
        """See the base."""
        super().load_json(state)
        self._gain.load_json(state["gain"])
        self._time.load_json(state["time"])
        self._limits.load_json(state["limits"])
        self._deepest = dict(state["deepest"])
        self._levels = {device_id: (seen, expected) for device_id, (seen, expected) in state["levels"].items()}
        self._target_s = state["target_s"]

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def _best(self, times_s: Floats, optimistic_gain: Floats, target_s: float, error: float) -> Arm:
        """The arm with the largest optimistic reward among the arms that end in time; if none does, the fastest arm.

        Both arrays are [num_points]; times of arms that are not allowed are inf. ``error`` is the relative standard
        error of the times.
        """
        fits = times_s * (1 + CAUTION * error) <= target_s
        if not fits.any():
            return self._points[int(np.argmin(times_s))]
        deviation = np.abs(np.where(fits, times_s, 0.0) - target_s) / target_s
        reward = KAPPA * optimistic_gain / (deviation + KAPPA)
        return self._points[int(np.argmax(np.where(fits, reward, -np.inf)))]

    def _explore(self, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """First arms: on the first axis equal steps over the cheaper half of the box, on other axes random values."""
        if not device_ids:
            return {}
        if not self.axes:
            return dict.fromkeys(device_ids, self._points[0])
        first, low, high = self.box.sides()[0]
        cheapest = high if first.removes else low
        dealt = [rng.permutation(np.linspace(0.5 * (low + high), cheapest, len(device_ids) + 1)[1:])]
        for axis in list(self.axes)[1:]:
            values = self.box.values(axis.name)
            dealt.append(rng.permutation([values[k % len(values)] for k in range(len(device_ids))]))
        explored = {}
        for device_id, *wanted in zip(device_ids, *dealt, strict=True):
            away = np.abs(self._rows - np.array(wanted))
            distance = away[:, 0] + 1e-3 * away[:, 1:].sum(axis=1)
            allowed = self._limits.allowed(device_id, self._infeasible)
            explored[device_id] = self._points[int(np.argmin(np.where(allowed, distance, np.inf)))]
        return explored

    def _allowed(self, device_ids: Sequence[str], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Points that known devices may play in a round, [num_devices, num_points], one or more for each."""
        allowed = {}
        for group in groups({device_id: self._time.speed(device_id) for device_id in device_ids}):
            ahead = scouts(group, rng)
            for device_id in group:
                allowed[device_id] = self._limits.allowed(
                    device_id, self._infeasible, group, is_scout=device_id in ahead
                )
        return np.array([allowed[device_id] for device_id in device_ids])

    # ---- learning ----------------------------------------------------------------------------------------------------

    def _levelled(self, arms: dict[str, Arm], earned: dict[str, Credit]) -> list[tuple[Arm, float]]:
        """Gains of one round, divided by the round's level and by each device's level, to make them comparable."""
        mean, _ = self._gain.estimate()
        expected = {device_id: self._expected(arm, mean) for device_id, arm in arms.items()}
        total = sum(credit.gain for credit in earned.values())
        if total <= 0.0:
            return []
        # The model: gain = (the round's level) x (the device's level) x (the partition's estimate for the arm).
        # The round's level is the gain of all devices, over the gain expected of them at their own levels. It falls as
        # training goes on. Without it, an arm would look worse the later it is played.
        level = total / sum(self._level(device_id) * value for device_id, value in expected.items())
        plays = []
        for device_id, arm in sorted(arms.items()):
            gain = earned[device_id].gain / level
            # Divided by both levels, a gain depends on the arm alone. It is cut at 3, so that one lucky round does not
            # decide the estimate.
            plays.append((arm, min(3.0, gain / self._level(device_id))))
            # The device's level is the quotient of two discounted sums: its gains, and the gains expected of its arms.
            # Data of a device may be easier or harder to learn from than others', whatever the arm.
            seen, belief = self._levels.get(device_id, (0.0, 0.0))
            self._levels[device_id] = (
                LEVEL_DISCOUNT * seen + gain,
                LEVEL_DISCOUNT * belief + expected[device_id],
            )
        return plays

    def _level(self, device_id: str) -> float:
        seen, expected = self._levels.get(device_id, (0.0, 0.0))
        return (LEVEL_PRIOR + seen) / (LEVEL_PRIOR + expected)

    def _expected(self, arm: Arm, mean: Floats) -> float:
        """Mean gain at the point nearest to an arm (arms may lie off the lattice while they are ramped up)."""
        if arm in self._index:
            return float(mean[self._index[arm]])
        places = self.box.places(self._rows)
        return float(mean[int(np.argmin(((places - self.box.place(arm)) ** 2).sum(axis=1)))])
