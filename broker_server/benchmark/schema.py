"""Schema of the file that ``fedspine bench engine --json FILE`` writes; docs/engine.md explains every field."""

from __future__ import annotations

from typing import Literal

import msgspec

from broker_server.serving.report.encoding import decode
from edge_runtime.benchmark.protocol import ProductShape


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Least and greatest figure of the runs."""

    least: float
    most: float


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's medians over those of ``fused``."""

    step_s_p50: float
    tokens_per_s: float
    peak_rss_bytes: float
    cold_start_s: float


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one contender; medians over runs, each a process of its own."""

    arm: str
    """``RATIO:RANK``; peers that slice nothing train ratio 0."""
    base: str
    """Type of the frozen weights."""
    num_trainable: int
    step_s_p50: float
    """Seconds of a step: median over the runs of the median over a run's timed steps."""
    step_s_spread: Spread
    """Of the runs' medians."""
    tokens_per_s: float
    peak_rss_bytes: int
    peak_rss_spread: Spread
    cold_start_s: float
    """From the start of the process to the end of its first step: import, load from disk, the step."""
    cold_start_spread: Spread
    loss_after_50: float
    """Loss of the batch of step 51, before that step, nats."""
    reference: str | None
    """Contender that it is compared with; null of ``fused`` itself, and where nothing else does the same work."""
    loss_gap: float | None
    """Largest difference from the reference's losses, over the first batch and after each of 50 steps, nats."""
    same_work: bool | None
    """Whether that is at most 0.001, and as many elements are trained; null without a reference."""
    to_fused: Ratios
    versions: dict[str, str]


class ShapeRate(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix product of the step by onnxruntime."""

    shape: ProductShape
    count: int
    """Number of times that it occurs in a step."""
    best_s: float
    """Least time."""
    p50_s: float
    """Median time: over the runs, of each run's median."""
    flops_per_s: float
    """At the least time."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's limit for a step of ``fused``; see :mod:`broker_server.benchmark.products`."""

    step_flops: int
    best_flops_per_s: float
    """The best rate over the shapes."""
    step_s: float
    """``step_flops / best_flops_per_s``."""
    p50_flops_per_s: float
    """The best over the shapes of the rates at their median times."""
    per_shape_step_s: float
    """Sum over the products of the best time of each one's shape."""
    shapes: tuple[ShapeRate, ...]


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    schema_version: Literal[1] = 1
    created_at: float
    """Unix seconds, UTC."""
    date: str
    model_name: str
    settings: dict[str, str | int | None]
    engines: dict[str, EngineFigures]
    same_work: bool
    """Whether every engine that has a reference agrees with it."""
    limit_ratio: float
    """``limit.step_s`` over the step of ``fused``: the share of the machine's limit that it reaches."""
    limit_ratio_per_shape: float
    """The same with ``limit.per_shape_step_s``."""
    limit_ratio_p50: float
    """``limit_ratio`` with ``limit.p50_flops_per_s``: medians on both sides."""
    limit: Limit
    machine: dict[str, str]
    """System, processor, cores, memory, load before and after, versions of this process."""


def decode_bench(data: bytes) -> BenchReport:
    """Read a report.

    Raises:
        ReportError: not a report of this schema version.
    """
    return decode(data, BenchReport, what="benchmark report")
