"""A made-up run for tests of report and progress; every figure is plain to see here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker_server.serving.report.build import RunSummary, build_report
from broker_server.serving.report.schema import Compact, DataEntry, DeviceData, Report
from broker_server.serving.storage.records import DeviceRecord, EvaluationRecord, RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.measures import Measurements
from edge_runtime.wire.work import Arm

ARMS = ((0.0, 8), (0.25, 8), (0.5, 4))


def measurements(**changes: Any) -> Measurements:
    """Return a device's measurements, with ``changes``."""
    made = Measurements(
        train_s=2.0,
        step_s_p50=0.2,
        step_s_p95=0.3,
        fetch_s=0.0,
        prepare_s=0.0,
        evaluate_s=0.0,
        peak_rss_bytes=300_000_000,
        bytes_up=1000,
        bytes_down=2000,
    )
    return msgspec.structs.replace(made, **changes)


def device_record(number: int, round_number: int, outcome: str = "accepted") -> DeviceRecord:
    """Device ``number`` of three; without figures where it was lost."""
    ratio, rank = ARMS[(number + round_number) % 3]
    there = outcome == "accepted"
    return DeviceRecord(
        device_id=f"device-{number}",
        attempt=1,
        arm=Arm(pruning_ratio=ratio, rank=rank),
        sparsity=ratio,
        outcome=outcome,
        detail="" if there else "went offline",
        num_examples=100 if there else None,
        train_loss=1.5 if there else None,
        measurements=measurements(step_s_p50=0.2 - 0.1 * ratio) if there else None,
        evaluation=None,
    )


def round_records(num_rounds: int = 3) -> list[RoundRecord]:
    """Rounds 0 to ``num_rounds``, four seconds each, better from one to the next; device 2 is lost in round 2."""
    return [
        RoundRecord(
            round_number=number,
            seconds=4.0,
            elapsed_s=4.0 * (number + 1),
            evaluation=EvaluationRecord(
                loss=6.0 - number, accuracy=0.25 + 0.2 * number, num_targets=500, is_complete=True, evaluate_s=0.5
            ),
            devices=tuple(device_record(d, number, "lost" if (d, number) == (2, 2) else "accepted") for d in (1, 2, 3))
            if number
            else (),
        )
        for number in range(num_rounds + 1)
    ]


def sampled_records() -> list[RoundRecord]:
    """As :func:`round_records`, but rounds are measured on a sample, and the last one on all examples too."""
    records = round_records()
    last = records[-1].evaluation
    assert last is not None
    on_all = msgspec.structs.replace(last, loss=4.0, accuracy=0.75, num_targets=5000)
    evaluation = msgspec.structs.replace(last, is_complete=False, on_all=on_all)
    return [*records[:-1], msgspec.structs.replace(records[-1], evaluation=evaluation, sparse=evaluation)]


def sample_report(task: Task = "causal-lm", rounds: Sequence[RoundRecord] | None = None, *, method: str = "") -> Report:
    """A whole report, of :func:`round_records` unless others are given."""
    is_causal = task == "causal-lm"
    compact = Compact(
        path="compact",
        bytes=7_000_000,
        pruning_ratio=0.25,
        sparsity=0.24,
        quantization=None,
        num_parameters=4_000_000,
        loss=3.5,
        latency_ms=2.5,
        latency_unit="token" if is_causal else "example",
        **(
            {"perplexity": 33.1, "sample_prompt": "Return", "sample": " <the> value"}
            if is_causal
            else {"accuracy": 0.8}
        ),
    )
    data = DataEntry(
        source="train.jsonl",
        num_train=300,
        num_test=50,
        labels=() if is_causal else ("a", "b"),
        devices=tuple(DeviceData(device_id=f"device-{d}", num_examples=100, classes={"a": 60}) for d in (1, 2, 3)),
    )
    summary = RunSummary(
        run_id="run-1",
        task=task,
        model_name="tiny",
        artifact_digest="ab" * 32,
        created_at=1_790_000_000.0,
        steps={"prepare": 10.0, "compact": 5.0},
        data=data,
        config={"rounds": 3, "model": "", "sparsity": 0.25, "method": method},
    )
    return build_report(summary, round_records() if rounds is None else rounds, compact)
