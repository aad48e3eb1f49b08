"""One finished run as the comparison sees it: quality and cost round by round, and each device's arms."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final, Literal

from broker_server.methods.rounds.types import Outcome
from broker_server.serving.report.arms import axes_of
from broker_server.serving.report.quality import metric_name
from broker_server.serving.report.schema import Report, RoundEntry
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.wire.arms import Axes
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm

Clock = Literal["emulated", "wall"]
"""Clock of all times: a modelled fleet, or this machine."""

NO_CLASS: Final = "all devices"
"""Class of devices where the fleet has none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The model after one round that was evaluated, and all that it had cost by the end of that round."""

    round_number: int
    time_s: float
    """Since training began: emulated where the run is, else wall time of the rounds (evaluation included)."""
    num_bytes: int
    """Payload bytes from and to all devices so far, without the artifact, which each downloads once."""
    quality: float
    """Accuracy or perplexity of the global model on held-out examples."""
    sparse_quality: float | None
    """The same of the sub-model at the wanted sparsity, where it was measured."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One device's part in one round."""

    device_class: str
    arm: Arm
    outcome: str
    completion_s: float | None
    """Time that the round waited for it, at most until the round's end; None if nothing came."""
    num_attempts: int
    """Arms that it was given in this round."""
    num_infeasible: int
    """Those of them that did not fit its memory or missed the deadline: a device is given another one in the same round
    only when the one before did not fit its memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrace:
    """One training round."""

    round_number: int
    seconds: float
    """On the run's clock."""
    plays: tuple[Play, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One run."""

    task: Literal["text-classification", "causal-lm"]
    clock: Clock
    axes: Axes
    """Of the arms that were played."""
    points: tuple[Point, ...]
    """In order; the first is round 0."""
    rounds: tuple[RoundTrace, ...]
    """In order, 1 first."""
    final_quality: float
    final_sparse_quality: float | None
    peak_rss_bytes: int | None
    """Largest resident set of any device's process."""
    artifact_bytes: int
    """Bytes that a device downloads once."""

    @property
    def is_lower_better(self) -> bool:
        """Return whether quality is a perplexity."""
        return self.task == "causal-lm"

    def is_at_least(self, quality: float, target: float) -> bool:
        """Return whether a quality reaches a target."""
        return quality <= target if self.is_lower_better else quality >= target


def trace_of(report: Report, artifact_bytes: int = 0) -> Trace:
    """Read a run's report.

    Args:
        report: of a finished run.
        artifact_bytes: size of the files that a device downloads once; taken off its first download.

    Raises:
        ConfigError: its method is of a package that is not here.
    """
    name = metric_name(report.task)
    clock = _clock(report)
    points, elapsed_s, num_bytes = [], 0.0, 0
    served: set[str] = set()
    for entry in report.rounds:
        elapsed_s += _seconds(entry, clock) if entry.round_number else 0.0  # round 0 only evaluates
        num_bytes += sum(_bytes(device, artifact_bytes, served) for device in entry.devices)
        quality = getattr(entry, name)
        if isinstance(quality, float):
            sparse = getattr(entry, f"{name}_at_sparsity", None)
            points.append(
                Point(
                    round_number=entry.round_number,
                    time_s=elapsed_s,
                    num_bytes=num_bytes,
                    quality=quality,
                    sparse_quality=sparse if isinstance(sparse, float) else None,
                )
            )
    final_sparse = getattr(report.final, f"{name}_at_sparsity", None)
    rss = [device.measurements.peak_rss_bytes for device in _devices(report) if device.measurements]
    return Trace(
        task=report.task,
        clock=clock,
        axes=axes_of(report.config),
        points=tuple(points),
        rounds=tuple(_round(entry, clock) for entry in report.rounds if entry.round_number),
        final_quality=float(getattr(report.final, name)),
        final_sparse_quality=final_sparse if isinstance(final_sparse, float) else None,
        peak_rss_bytes=max(rss, default=None),
        artifact_bytes=artifact_bytes,
    )


def _devices(report: Report) -> itertools.chain[DeviceRecord]:
    return itertools.chain.from_iterable(entry.devices for entry in report.rounds)


def _bytes(device: DeviceRecord, artifact_bytes: int, served: set[str]) -> int:
    """Bytes of a device's part in a round; ``served`` collects those whose download of the artifact is taken off."""
    if device.measurements is None:
        return 0
    down = device.measurements.bytes_down
    if down and device.device_id not in served:
        served.add(device.device_id)
        down = max(0, down - artifact_bytes)
    return device.measurements.bytes_up + down


def _clock(report: Report) -> Clock:
    return "emulated" if any(entry.emulated_s is not None for entry in report.rounds) else "wall"


def _seconds(entry: RoundEntry, clock: Clock) -> float:
    return (entry.emulated_s or 0.0) if clock == "emulated" else entry.seconds


def _round(entry: RoundEntry, clock: Clock) -> RoundTrace:
    seconds = _seconds(entry, clock)
    plays = tuple(_play(device, seconds) for device in entry.devices)
    return RoundTrace(round_number=entry.round_number, seconds=seconds, plays=plays)


def _play(device: DeviceRecord, round_s: float) -> Play:
    is_infeasible = device.outcome == Outcome.TIMED_OUT or device.reason == FailureReason.ARM_INFEASIBLE
    return Play(
        device_class=device.device_class or NO_CLASS,
        arm=device.arm,
        outcome=device.outcome,
        completion_s=None if device.completion_s is None else min(device.completion_s, round_s),
        num_attempts=device.attempt,
        num_infeasible=device.attempt - 1 + is_infeasible,
    )
