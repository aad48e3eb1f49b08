"""Made-up runs whose every figure is plain to see: two devices of two classes, some rounds, a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker_server.experiments.compare.config import Comparison, ComparisonFile, RunKey
from broker_server.experiments.compare.trace import Trace, trace_of
from broker_server.serving.report.schema import Report, RoundEntry
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.wire.work import Arm
from tests.broker_server.report_samples import measurements, sample_report

ARTIFACT_BYTES = 1000
ROUND_BYTES = 10
"""Up and down, of each device in each round."""


def device(
    number: int,
    seconds: float | None,
    *,
    arm: tuple[float, int] = (0.5, 8),
    outcome: str = "accepted",
    reason: str | None = None,
    attempt: int = 1,
    extra_down: int = 0,
) -> DeviceRecord:
    """Device 1 is slow, device 2 is fast."""
    return DeviceRecord(
        device_id=f"device-{number}",
        outcome=outcome,
        detail="",
        arm=Arm(pruning_ratio=arm[0], rank=arm[1]),
        sparsity=arm[0],
        num_examples=100,
        train_loss=1.0,
        measurements=None
        if seconds is None
        else measurements(
            train_s=seconds,
            peak_rss_bytes=300_000_000 + number,
            bytes_up=ROUND_BYTES,
            bytes_down=ROUND_BYTES + extra_down,
        ),
        evaluation=None,
        attempt=attempt,
        reason=reason,
        completion_s=seconds,
        device_class="slow" if number == 1 else "fast",
        emulated_s=seconds,
    )


def report(
    qualities: Sequence[float],
    *,
    slow_s: float = 10.0,
    fast_s: float = 4.0,
    sparse: Sequence[float] = (),
    is_emulated: bool = True,
    is_causal: bool = False,
    devices: Mapping[int, tuple[DeviceRecord, ...]] | None = None,
    method: str = "",
) -> Report:
    """A run: quality before training and after each round; the slow device decides how long a round takes."""
    name = "perplexity" if is_causal else "accuracy"
    base = sample_report("causal-lm" if is_causal else "text-classification")
    rounds = []
    for number, quality in enumerate(qualities):
        values: dict[str, Any] = {name: quality}
        if sparse:
            values[f"{name}_at_sparsity"] = sparse[number]
        extra = ARTIFACT_BYTES if number == 1 else 0
        usual = tuple(device(d, s, extra_down=extra) for d, s in ((1, slow_s), (2, fast_s)))
        played = ((devices or {}).get(number) or usual) if number else ()
        rounds.append(
            RoundEntry(
                round_number=number,
                loss=1.0,
                num_targets=100,
                seconds=3.0,
                devices=played,
                emulated_s=slow_s if is_emulated and number else None,
                elapsed_emulated_s=slow_s * number if is_emulated else None,
                **values,
            )
        )
    final: dict[str, Any] = {name: qualities[-1]}
    if sparse:
        final[f"{name}_at_sparsity"] = sparse[-1]
    return msgspec.structs.replace(
        base,
        rounds=tuple(rounds),
        final=msgspec.structs.replace(base.final, **final),
        compact=None,
        config={**base.config, "method": method},
    )


def trace(qualities: Sequence[float], **options: Any) -> Trace:
    """See :func:`report`."""
    return trace_of(report(qualities, **options), artifact_bytes=ARTIFACT_BYTES)


def comparison(**changes: Any) -> Comparison:
    """Two methods and two seeds of the built-in model, target 0.8."""
    data = {
        "title": "Two methods",
        "methods": ["fedspine", "fedit"],
        "seeds": [0, 1],
        "target": 0.8,
        "run": {"rounds": 4, "arms": "0.0:4,0.5:8", "sparsity": 0.5, "model": "m", "task": "text-classification"},
    }
    data["run"] = {**data["run"], "data": "d.jsonl"}  # type: ignore[dict-item]
    return Comparison.of(msgspec.convert(data | changes, ComparisonFile))


def finished(**traces: Sequence[Trace]) -> dict[RunKey, Trace]:
    """Runs by method, in the order of their seeds."""
    return {RunKey(method=name, seed=seed): one for name, runs in traces.items() for seed, one in enumerate(runs)}


DOCS = Path(__file__).resolve().parents[4] / "docs"
