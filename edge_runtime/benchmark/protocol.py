"""The request of ``fedspine bench engine`` to a process, and the result that the process prints: one JSON object each.

A contender is a command line. Its last argument is a file with a :class:`BenchmarkRequest`; the last line that it
prints is a :class:`BenchmarkResult`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.wire.work import Arm, HyperParameters

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
ProductShape = tuple[Positive, Positive, Positive, Positive]
"""``(batch, rows, inner, columns)``: so many products of ``[rows, inner]`` and ``[inner, columns]``."""


class BenchmarkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The work of one contender: all contenders train from the same start on the same batches."""

    engine: str
    """Name of the engine, for a process that can run several."""
    artifact: str
    """Directory of the artifact: base weights and manifest."""
    model: str
    """Hugging Face directory or hub id that the artifact was exported from."""
    ort_models: str
    """Directory of ort-training models of the arm; empty if no contender needs them."""
    arm: Arm
    num_threads: Positive
    num_warmup_steps: Positive
    """Number of steps before the timed ones."""
    num_timed_steps: Positive
    hyper_parameters: HyperParameters
    """``num_local_steps`` is the number of all steps; batches are ``batch_size`` x ``max_length`` tokens."""


class BenchmarkResult(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one process of a contender, made by this process."""

    num_trainable: Positive
    """Number of trained elements: the same for all contenders with the same work."""
    first_step_at: float
    """Time at which the first step was done, on the system's monotonic clock, seconds."""
    step_times_s: tuple[Seconds, ...]
    """Wall time of each timed step."""
    losses: tuple[float, ...]
    """Loss of every step's batch before the step, nats: entry ``n`` is the loss after ``n`` steps."""
    peak_rss_bytes: Positive
    """Largest resident set, see :func:`edge_runtime.system.resident.peak_rss_bytes`."""
    versions: dict[str, str]
    """Versions of the packages that did the work."""


class RatesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Matrix products to time."""

    num_threads: Positive
    shapes: tuple[ProductShape, ...]
    min_s: Seconds
    """Shortest time for which each product is repeated."""


class RatesResult(msgspec.Struct, frozen=True, kw_only=True):
    """Wall times of each product, in the order of the request."""

    best_s: tuple[Seconds, ...]
    """Shortest time of each product."""
    p50_s: tuple[Seconds, ...]
    """Median time of each product."""
