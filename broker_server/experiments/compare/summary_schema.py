"""``summary.json``: typed, versioned; its JSON schema is docs/summary.schema.json. All that the page shows is in it.

Accuracy (classification) is a share in [0, 1], perplexity (language modelling) exp of the mean loss of a token. The
fields of the other task are absent.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from broker_server.serving.report.encoding import decode


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a method over its seeds."""

    median: float | None
    """Over the finished runs. Of a cost to a target, a run that never reached it counts as infinitely expensive: null
    where the median is that. Of other figures, over the runs that have it."""
    min: float | None
    """Smallest known value."""
    max: float | None
    """Largest known value."""
    values: tuple[float | None, ...]
    """By seed, in the order of ``seeds``; null if not reached, not applicable, or not run."""
    num_known: int
    """Seeds with a value: of a cost to a target, those that reached it."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Quality when a budget is used up: after the last round that ended within it."""

    kind: Literal["time_s", "bytes"]
    amount: float
    quality: Figure


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A method after one round, over its seeds."""

    round_number: int
    time_s: float
    """Median."""
    bytes: float
    """Median."""
    quality: float
    """Median."""
    quality_min: float
    quality_max: float
    sparse_quality: float | None
    """Median, of the sub-model at the wanted sparsity; null if it was not measured."""


class RegretPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulated regret after one round, seconds, over the seeds."""

    round_number: int
    median: float
    min: float
    max: float


class ArmAxis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis of the arms that were played."""

    name: str
    label: str
    """For people."""
    is_share: bool
    """Whether its values are shares that are removed, as a pruning ratio is."""
    is_whole: bool
    """Whether its values are whole numbers."""


class ArmPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The arm of a class of devices in one round, mean over devices and seeds."""

    device_class: str
    round_number: int
    values: dict[str, float]
    """By the name of the axis."""


class MethodSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One method."""

    label: str
    about: str
    base: str
    """The method, where this is one under a scenario; else its own name."""
    scenario: str
    """Conditions under which it ran; empty = those of all."""
    settings: dict[str, str | int | float | bool]
    """Settings of ``fedspine run`` on top of the shared ones."""
    num_finished: int
    """Seeds whose run is finished."""
    time_to_target_s: Figure
    """End of the first evaluated round that reached the target."""
    bytes_to_target: Figure
    """Payload bytes from and to all devices by then, without the artifact."""
    rounds_to_target: Figure
    time_to_target_at_sparsity_s: Figure
    """As ``time_to_target_s``, of the sub-model at the wanted sparsity."""
    final_accuracy: Figure | UnsetType = UNSET
    final_perplexity: Figure | UnsetType = UNSET
    accuracy_at_sparsity: Figure | UnsetType = UNSET
    perplexity_at_sparsity: Figure | UnsetType = UNSET
    regret: Figure
    """Seconds that all rounds took longer than the oracle's; null if no oracle ran."""
    regret_exponent: float | None
    """Exponent of the growth of the median regret over the later half of the rounds; below 1 is sublinear."""
    infeasible_plays_ratio: Figure
    late_infeasible_plays_ratio: Figure
    """After round 10."""
    idle_ratio: Figure
    total_time_s: Figure
    """All rounds."""
    total_bytes: Figure
    peak_rss_bytes: Figure
    """Largest resident set of a device's process; measured on this machine, not emulated."""
    outcomes: dict[str, int]
    """Number of each outcome over devices and rounds, all seeds."""
    budgets: tuple[Budget, ...]
    curve: tuple[CurvePoint, ...]
    regret_curve: tuple[RegretPoint, ...]
    arms: tuple[ArmPoint, ...]


class FailedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run without a result."""

    method: str
    seed: int
    error: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of ``summary.json``."""

    schema_version: Literal[2] = 2
    title: str
    is_quick: bool
    created_at: float
    """Unix seconds, UTC."""
    task: Literal["text-classification", "causal-lm"]
    clock: Literal["emulated", "wall"]
    """Clock of all times: modelled by the emulation, or wall time of this machine."""
    target: float | None
    sparsity: float
    """Pruning ratio of the figures "at sparsity"."""
    artifact_bytes: int
    """Bytes that each device downloads once, the same with every method; in no other figure."""
    seeds: tuple[int, ...]
    reference: str
    """Method that the tables set the others against."""
    axes: tuple[ArmAxis, ...]
    """Of the arms that were played, in the order in which arms are written."""
    config: dict[str, str | int | float | bool]
    """Settings that all runs share; files without their folders."""
    environment: dict[str, str]
    """Versions, processor, cores."""
    methods: dict[str, MethodSummary]
    failed: tuple[FailedRun, ...]
    missing: tuple[str, ...]
    """Runs that were not started or not finished yet."""


def decode_summary(data: bytes) -> Summary:
    """Read a summary.

    Raises:
        ReportError: not a summary of this schema version.
    """
    return decode(data, Summary, what="summary")
