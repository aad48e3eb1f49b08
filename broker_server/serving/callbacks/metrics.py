"""A round and a report as named numbers, for programs that draw curves."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from broker_server.serving.report.build import quality_fields
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import DeviceRecord, EvaluationRecord, RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import Axes


def round_metrics(record: RoundRecord, task: Task, axes: Axes) -> dict[str, float]:
    """Figures of a round: ``held_out/...``, ``held_out_at_sparsity/...``, ``round/...``, ``device/FIGURE/DEVICE``.

    Values that were not measured are absent.

    Args:
        record: of the round.
        task: says which figure of quality was measured.
        axes: of the arms that devices played.
    """
    measured = [device.measurements for device in record.devices if device.measurements is not None]
    found = {
        **_quality("held_out", record.evaluation, task),
        **_quality("held_out_at_sparsity", record.sparse, task),
        "round/seconds": record.seconds,
        "round/accepted_updates": float(sum(device.outcome == "accepted" for device in record.devices)),
        "round/bytes_up": float(sum(one.bytes_up for one in measured)),
        "round/bytes_down": float(sum(one.bytes_down for one in measured)),
    }
    if record.emulated_s is not None:
        found["round/emulated_seconds"] = record.emulated_s
    for device in record.devices:
        found |= {f"device/{name}/{device.device_id}": value for name, value in _of_device(device, axes)}
    return found


def final_metrics(report: Report) -> dict[str, float]:
    """Figures of a finished run: ``final/...``, and ``compact/...`` where there is a compact model."""
    parts = {"final": report.final, "compact": report.compact}
    return {
        f"{part}/{name}": float(value)
        for part, struct in parts.items()
        if struct is not None
        for name, value in msgspec.structs.asdict(struct).items()
        if isinstance(value, int | float)
    }


def _quality(where: str, evaluation: EvaluationRecord | None, task: Task) -> dict[str, float]:
    if evaluation is None:
        return {}
    accuracy, perplexity = quality_fields(task, evaluation.loss, evaluation.accuracy)
    figures = {"loss": evaluation.loss, "accuracy": accuracy, "perplexity": perplexity}
    return {f"{where}/{name}": value for name, value in figures.items() if isinstance(value, float)}


def _of_device(device: DeviceRecord, axes: Axes) -> Iterator[tuple[str, float]]:
    for axis in axes:
        yield axis.name, float(axis.of(device.arm))
    for name, value in (("train_loss", device.train_loss), ("completion_seconds", device.completion_s)):
        if value is not None:
            yield name, value
