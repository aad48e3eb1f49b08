"""The virtual clock: how long an assignment would have taken on a device of a class. All of it is emulated.

    T = 8 bytes_down / downlink + jitter * factor(round) * sum over steps of step_s(arm, at the ratio of the step)
        + 8 bytes_up / uplink

``step_s`` is measured (:mod:`broker_server.emulation.step_times`), bytes are those of the messages that were really
sent (the artifact is taken to be on the device already), factor and links are the class's. ``jitter`` is log-normal
around 1, drawn from the run's seed for each assignment, so a restarted coordinator finds the same times.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from broker_server.emulation.fleet import Fleet
from broker_server.emulation.step_times import StepTimes
from broker_server.methods.pruning.schedule import Segment
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm

_JITTER, _AVAILABILITY = range(2)


class VirtualClock:
    """Times and availability of one run's fleet; the same answers for the same questions, in any order.

    Attributes:
        fleet: classes and members.
        deadline_s: longest time of a round; infinite where there is none.
    """

    def __init__(self, fleet: Fleet, step_times: StepTimes, seed: int) -> None:
        self.fleet = fleet
        self.deadline_s = fleet.deadline_s or math.inf
        self._step_times = step_times
        self._seed = seed

    def available(self, round_number: int, device_ids: Sequence[str]) -> tuple[str, ...]:
        """Devices that take part in a round; one of them, drawn, where chance would leave none."""
        draws = {device_id: self._draw(_AVAILABILITY, round_number, device_id, 0).random() for device_id in device_ids}
        there = [device_id for device_id in device_ids if draws[device_id] < self._availability(device_id)]
        return tuple(there) or (min(device_ids, key=lambda device_id: (draws[device_id], device_id)),)

    def completion_s(
        self,
        key: AssignmentKey,
        arm: Arm,
        segments: Sequence[Segment],
        num_local_steps: int,
        *,
        bytes_down: int,
        bytes_up: int,
    ) -> float:
        """Seconds from an assignment to its update, emulated.

        Args:
            key: whose, and which.
            arm: the arm; its ratio is not used.
            segments: ratios of the steps, see :func:`broker_server.methods.pruning.schedule.segments`.
            num_local_steps: optimizer steps.
            bytes_down: assignment and its blob.
            bytes_up: blob of the update.

        Raises:
            ConfigError: the device is not a member of the fleet.
        """
        jitter = self.fleet.jitter * self._draw(_JITTER, key.round_number, key.device_id, key.attempt).standard_normal()
        mean_s = self._mean_s(key.device_id, key.round_number, arm, segments, num_local_steps)
        device = self.fleet.class_of(key.device_id)
        down_s = 8e-6 * bytes_down / device.downlink_mbit_s
        return down_s + math.exp(jitter) * mean_s + 8e-6 * bytes_up / device.uplink_mbit_s

    def expected_s(self, device_id: str, arm: Arm, round_number: int, num_local_steps: int, num_bytes: int) -> float:
        """Seconds without jitter, the arm's ratio played throughout; ``num_bytes`` each way."""
        device = self.fleet.class_of(device_id)
        steps_s = self._mean_s(
            device_id, round_number, arm, [Segment(at_step=1, pruning_ratio=arm.pruning_ratio)], num_local_steps
        )
        return steps_s + 8e-6 * num_bytes * (1 / device.downlink_mbit_s + 1 / device.uplink_mbit_s)

    def _mean_s(
        self, device_id: str, round_number: int, arm: Arm, segments: Sequence[Segment], num_local_steps: int
    ) -> float:
        ends = [segment.at_step for segment in segments[1:]] + [num_local_steps + 1]
        steps_s = sum(
            (end - segment.at_step)
            * self._step_times.at(msgspec.structs.replace(arm, pruning_ratio=segment.pruning_ratio))
            for segment, end in zip(segments, ends, strict=True)
        )
        return self.fleet.class_of(device_id).compute_factor_at(round_number) * steps_s

    def _availability(self, device_id: str) -> float:
        return self.fleet.class_of(device_id).availability

    def _draw(self, purpose: int, round_number: int, device_id: str, attempt: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, purpose, round_number, zlib.crc32(device_id.encode()), attempt))


def round_s(times_s: Mapping[str, float | None], deadline_s: float) -> float:
    """Length of a round: its slowest device, at most the deadline; 0 if nobody trained."""
    return min(deadline_s, max((s for s in times_s.values() if s is not None), default=0.0))
