"""``oracle``: plays the profile of largest learning speed, from the true time of every arm. For simulations only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.scheduler.base import Scheduler, SchedulerContext
from broker_server.methods.scheduler.box import Floats
from broker_server.methods.scheduler.profile import frontier, profile
from broker_server.methods.scheduler.reward import prior_gain
from edge_runtime.wire.work import Arm


class OracleScheduler(Scheduler):
    """The reference for other schedulers: in every round it plays the arms that maximise J of :mod:`.profile` exactly.

    It knows the expected completion time of every (device, arm, round), the arms that fit each device's memory, and the
    expected gain of every arm, but not the noise. It plans one round, because J does not depend on earlier rounds.
    """

    name: ClassVar[str] = "oracle"

    def __init__(self, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> None:
        super().__init__(arms, context)
        if self.context.completion_s is None:
            msg = "scheduler 'oracle' knows the devices' models: it needs an emulated fleet"
            raise ConfigError(msg)
        self._completion_s = self.context.completion_s
        self._points = self.box.lattice()

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See the base."""
        del rng
        if not device_ids:
            return {}
        ordered = sorted(device_ids)
        times_s = np.stack([self._times(device_id, round_number) for device_id in ordered])
        gains = self._gains()
        chosen = profile(times_s, gains, frontier(times_s, gains).best())
        return {device_id: self._points[i] for device_id, i in zip(ordered, chosen, strict=True)}

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See the base. Needed only if the memory model is wrong: the fastest remaining arm."""
        del rng
        left = [arm for arm in self._points if self.is_feasible(device_id, arm)]
        return min(left, key=lambda arm: self._completion_s(device_id, arm, round_number)) if left else None

    def _gains(self) -> Floats:
        known = self.context.gain
        if known is not None:
            return np.array([known(arm) for arm in self._points])
        return prior_gain(self.box, self._points)

    def _times(self, device_id: str, round_number: int) -> Floats:
        """Seconds of every point [num_points], inf if it does not fit; if none fits, only the cheapest is finite."""
        fits = self.context.is_feasible
        times = np.array(
            [
                self._completion_s(device_id, arm, round_number)
                if self.is_feasible(device_id, arm) and (fits is None or fits(device_id, arm))
                else np.inf
                for arm in self._points
            ]
        )
        if not np.isfinite(times).any():
            cheapest = self._points.index(self.box.cheapest)
            times[cheapest] = self._completion_s(device_id, self._points[cheapest], round_number)
        return times
