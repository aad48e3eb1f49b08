"""Builds a :class:`~broker_server.serving.report.schema.Report` from the records of a run; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from broker_server.errors import RunFailedError
from broker_server.serving.report.arms import first_work_of
from broker_server.serving.report.findings import find_warnings
from broker_server.serving.report.quality import perplexity
from broker_server.serving.report.schema import (
    Compact,
    DataEntry,
    FleetEntry,
    Outcome,
    OverFirstWork,
    Report,
    RoundEntry,
)
from broker_server.serving.storage.records import EvaluationRecord, RoundRecord
from broker_server.versions import environment
from edge_runtime.formats.manifest import Task

TRAINING_STEP = "training"
"""Name of the step that plays the rounds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The facts about a run that its report shows beside the rounds."""

    run_id: str
    task: Task
    model_name: str
    artifact_digest: str
    created_at: float
    steps: Mapping[str, float]
    """Seconds of each step of the job."""
    data: DataEntry
    config: Mapping[str, str | int | float | bool]
    fleet: FleetEntry | None = None
    """Classes of emulated devices."""


def build_report(summary: RunSummary, rounds: Sequence[RoundRecord], compact: Compact | None) -> Report:
    """Put a report together.

    Args:
        summary: see there.
        rounds: finished rounds, in order, 0 first.
        compact: the compact model, or None.

    Raises:
        RunFailedError: no round is finished.
    """
    if not rounds:
        msg = "the run has no finished round: nothing to report; go on with it"
        raise RunFailedError(msg)
    kept = rounds[-1].kept
    evaluated = next((record for record in reversed(rounds) if record.evaluation is not None), rounds[-1])
    number = evaluated.round_number if kept is None else kept.round_number
    evaluation = evaluated.evaluation if kept is None else kept.evaluation
    last = None if evaluation is None else evaluation.best_known
    devices = [device for record in rounds for device in record.devices]
    # rounds are on disk even after kill -9, steps are not
    training_s = max(summary.steps.get(TRAINING_STEP, 0.0), rounds[-1].elapsed_s)
    steps = {**summary.steps, TRAINING_STEP: training_s}
    accuracy, ppl = _optional_quality(summary.task, last)
    sparse = next((record.sparse.best_known for record in reversed(rounds) if record.sparse is not None), None)
    if kept is not None:
        sparse = kept.sparse
    sparse_accuracy, sparse_ppl = _optional_quality(summary.task, sparse)
    entries = tuple(_round(record, summary.task) for record in rounds)
    return Report(
        run_id=summary.run_id,
        task=summary.task,
        model_name=summary.model_name,
        artifact_digest=summary.artifact_digest,
        created_at=summary.created_at,
        final=Outcome(
            accuracy=accuracy,
            perplexity=ppl,
            loss=None if last is None else last.loss,
            seconds=sum(steps.values()),
            bytes_up=sum(device.measurements.bytes_up for device in devices if device.measurements),
            bytes_down=sum(device.measurements.bytes_down for device in devices if device.measurements),
            accuracy_at_sparsity=sparse_accuracy,
            perplexity_at_sparsity=sparse_ppl,
            loss_at_sparsity=None if sparse is None else sparse.loss,
            emulated_s=rounds[-1].elapsed_emulated_s,
            round_number=number,
            num_targets=0 if last is None else last.num_targets,
        ),
        rounds=entries,
        compact=compact,
        steps=steps,
        data=summary.data,
        config=dict(summary.config),
        environment=environment(),
        fleet=summary.fleet,
        warnings=find_warnings(summary.task, entries, number, compact, summary.config),
        over_first_work=_over_first_work(entries, number, first_work_of(summary.config)),
    )


def quality_fields(task: Task, loss: float | None, accuracy: float) -> tuple[float | UnsetType, float | UnsetType]:
    """Values of the fields ``accuracy`` and ``perplexity``: one of them, the other absent; no perplexity of no loss."""
    if task == "causal-lm":
        return UNSET, UNSET if loss is None else perplexity(loss)
    return accuracy, UNSET


def _optional_quality(task: Task, evaluation: EvaluationRecord | None) -> tuple[float | UnsetType, float | UnsetType]:
    """As :func:`quality_fields`; both absent where nothing was measured."""
    return (UNSET, UNSET) if evaluation is None else quality_fields(task, evaluation.loss, evaluation.accuracy)


def _over_first_work(rounds: Sequence[RoundEntry], final_round: int, first_work: str) -> OverFirstWork | None:
    used = [entry for entry in rounds if entry.was_used]
    works = [{device.work for device in entry.devices} - {""} for entry in used]
    kept = next((entry for entry in used if entry.round_number == final_round), None)
    if kept is None or {first_work} not in works or all(work == {first_work} for work in works):
        return None
    first = used[works.index({first_work})]
    if not isinstance(first.accuracy, float) or not isinstance(kept.accuracy, float) or kept.loss is None:
        return None
    if first.loss is None or first.num_targets != kept.num_targets:
        return None
    return OverFirstWork(
        work=first_work,
        round_number=first.round_number,
        accuracy=first.accuracy,
        loss=first.loss,
        accuracy_gain=kept.accuracy - first.accuracy,
        loss_fall=first.loss - kept.loss,
    )


def _round(record: RoundRecord, task: Task) -> RoundEntry:
    evaluation, sparse = record.evaluation, record.sparse
    accuracy, ppl = _optional_quality(task, evaluation)
    sparse_accuracy, sparse_ppl = _optional_quality(task, sparse)
    return RoundEntry(
        round_number=record.round_number,
        accuracy=accuracy,
        perplexity=ppl,
        loss=None if evaluation is None else evaluation.loss,
        num_targets=0 if evaluation is None else evaluation.num_targets,
        seconds=record.seconds,
        devices=record.devices,
        accuracy_at_sparsity=sparse_accuracy,
        perplexity_at_sparsity=sparse_ppl,
        loss_at_sparsity=None if sparse is None else sparse.loss,
        is_deploy=record.is_deploy,
        emulated_s=record.emulated_s,
        elapsed_emulated_s=record.elapsed_emulated_s,
        discarded=record.discarded,
        is_unchanged=record.is_unchanged,
        num_standing=record.num_standing,
    )
