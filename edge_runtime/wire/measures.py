"""Measurements of a device and of its work: parts of the messages of :mod:`edge_runtime.wire.messages`."""

from __future__ import annotations

import msgspec

from edge_runtime.bounds.fields import Count, Loss, NumBytes, Positive, Rate, Seconds, Share, Short, Versions


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The hardware of a device, and measurements that the device makes at start."""

    architecture: Short
    operating_system: Short
    num_cores: Positive
    num_threads: Positive
    memory_bytes: NumBytes
    memory_limit_bytes: NumBytes
    """Memory that training may use."""
    versions: Versions
    matmul_gflops: Rate
    """Measured float32 matrix-product rate, 1e9 operations a second, at ``num_threads``."""
    memory_copy_gb_s: Rate
    """Measured copy rate, 1e9 bytes a second."""


class Measurements(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of a device's work on one assignment."""

    train_s: Seconds
    """Wall time of all optimizer steps."""
    step_s_p50: Seconds
    """Median time of an optimizer step."""
    step_s_p95: Seconds
    fetch_s: Seconds
    """Time to get artifact, base and adapter; 0 when cached."""
    prepare_s: Seconds
    """Time to slice, create sessions and read data."""
    evaluate_s: Seconds
    peak_rss_bytes: NumBytes
    """Largest resident set of the device process so far (VmHWM)."""
    bytes_up: NumBytes
    """Payload bytes this device published (MQTT) since its last update."""
    bytes_down: NumBytes
    """Payload bytes this device received (MQTT and HTTP) since its last update."""
    importance_s: Seconds = 0.0
    """Time spent scoring units between the steps; not part of ``train_s``."""
    paused_s: Seconds = 0.0
    """Time that the work was paused for temperature, throttling or battery; not part of any other time."""


class LocalEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Quality on the device's own held-out examples, before and after the local steps."""

    num_targets: Count
    loss_before: Loss
    loss_after: Loss
    accuracy_before: Share
    accuracy_after: Share
