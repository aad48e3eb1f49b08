"""The end of a run: quality of the compact model, the report, and the last lines on the screen."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from broker_server.experiments.run.emulate import read_fleet
from broker_server.experiments.run.layout import JobState, RunDirectory
from broker_server.experiments.run.preparation import model_name, read_summary
from broker_server.experiments.run.resolve import kept_settings
from broker_server.experiments.run.resume import MEASURE
from broker_server.experiments.run.settings import EMBEDDED_BROKERS, RunSettings
from broker_server.options import flat
from broker_server.serving.evaluation.held_out import shared_sample
from broker_server.serving.evaluation.parallel import evaluate_in_parts
from broker_server.serving.report.arms import MOST_SHOWN, arms_by_device, axes_of, is_of_many_kinds, played_text
from broker_server.serving.report.build import RunSummary, build_report, quality_fields
from broker_server.serving.report.from_run import COMPACT_RESULT, fleet_entry, report_run, write_report
from broker_server.serving.report.quality import bytes_text, duration_text, metric_name, metric_text, plural
from broker_server.serving.report.schema import REPORT_JSON, REPORT_PAGE, Compact, OverFirstWork, Report
from broker_server.serving.storage.adapters import whole_directory
from broker_server.serving.storage.store import Store
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.inference import CompactModel
from edge_runtime.link.address import BrokerAddress
from edge_runtime.system.files import write_atomically

MIN_ARMS: Final = 2
"""Arms from which on they are told at the end."""

_PROMPT_WORDS = 6
_FEW_WORDS = 4
_SAMPLE_TOKENS = 64


def measure_compact(settings: RunSettings, directory: RunDirectory, num_threads: int) -> None:
    """Evaluate the compact model on held-out examples, time it, let it write; kept as ``compact.json``.

    Raises:
        FedSpineError: the model cannot be used.
    """
    result = _evaluate(settings, directory, num_threads)
    model = CompactModel.open(directory.compact, num_threads=num_threads)
    latency = model.latency(length=settings.training.max_length)
    loss = result.loss if math.isfinite(result.loss) else None
    accuracy, perplexity = quality_fields(settings.task, loss, result.accuracy)
    compact = Compact(
        path=directory.compact.name,
        bytes=model.info.num_bytes,
        pruning_ratio=model.info.pruning_ratio,
        sparsity=model.info.sparsity,
        quantization=model.info.quantization,
        num_parameters=model.info.num_parameters,
        accuracy=accuracy,
        perplexity=perplexity,
        loss=loss,
        latency_ms=latency.median_ms,
        latency_unit=latency.unit,
        num_targets=result.num_targets,
    )
    prompt = _prompt(directory.test_file)
    if settings.task == "causal-lm" and prompt:
        rng = np.random.default_rng([settings.seed, 2])
        pieces = model.generate(prompt, max_new_tokens=_SAMPLE_TOKENS, temperature=0.7, top_k=40, rng=rng)
        compact = msgspec.structs.replace(compact, sample_prompt=prompt, sample="".join(pieces))
    write_atomically(directory.root / COMPACT_RESULT, msgspec.json.encode(compact))


def _evaluate(settings: RunSettings, directory: RunDirectory, num_threads: int) -> EvaluationResult:
    """Quality on all held-out examples; read with the artifact, whose tokenizer is the compact model's.

    A model of which nothing was removed is the whole model, which was measured on all of them. It is measured on the
    sample that rounds share, which shows that it is that model.
    """
    artifact = Artifact.open(next(directory.artifacts.glob("[!.]*")), verify=False)
    dataset = load_examples(directory.test_file, artifact, settings.training.max_length)
    model = CompactModel.open(directory.compact, num_threads=1)
    if model.info.is_whole:
        dataset, _ = shared_sample(dataset, settings.num_evaluation_examples, settings.seed)
    evaluate = partial(model.evaluate, max_length=settings.training.max_length, batch_size=settings.training.batch_size)
    return evaluate_in_parts(dataset, [evaluate] * num_threads)


def report_job(settings: RunSettings, directory: RunDirectory, state: JobState) -> Report:
    """Write ``report.json`` and ``report.html`` from the files in the run directory.

    Raises:
        RunFailedError: no round was evaluated.
        DiskFullError: there is no space.
    """
    store = Store.open(directory.root)
    try:
        rounds = store.load_round_records()
    finally:
        store.close()
    fleet = read_fleet(settings, directory)
    summary = RunSummary(
        run_id=state.run_id,
        task=settings.task,
        model_name=model_name(settings),
        artifact_digest=state.artifact_digest or "",
        created_at=state.created_at,
        steps=state.steps,
        data=read_summary(directory),
        config=shown_settings(settings),
        fleet=None if fleet is None else fleet_entry(fleet),
    )
    is_measured = settings.compact and MEASURE in state.done
    measured = directory.root / COMPACT_RESULT
    compact = msgspec.json.decode(measured.read_bytes(), type=Compact) if is_measured else None
    report = build_report(summary, rounds, compact)
    write_report(directory.root, report)
    return report


def report_again(run_dir: Path) -> Report:
    """The report of a run that this machine or boards played, in whatever state it is.

    Raises:
        FedSpineError: the run's files cannot be used, or no round is finished.
    """
    directory = RunDirectory(run_dir)
    if not directory.job_file.exists():
        return report_run(run_dir)
    settings = kept_settings(directory.settings_file)
    return report_job(settings, directory, directory.load_state())


def summary_lines(report: Report, root: Path) -> list[str]:
    """Last lines of a run: quality before and after, the compact model, warnings, and the paths of its files.

    Figures on one line are of the same held-out examples, whose number stands beside them.
    """
    name, unit = metric_name(report.task), report.target_unit

    def text(entry: object) -> str:
        value = getattr(entry, name)
        return metric_text(report.task, value) if isinstance(value, float) else "not measured"

    final, kept = report.final, report.kept
    devices, seconds = plural(len(report.data.devices), "device"), duration_text(final.seconds)
    where = f"{plural(report.rounds[-1].round_number, 'round')} on {devices}"
    if final.round_number != report.rounds[-1].round_number:
        where = f"round {final.round_number}, the best of {where}"
    is_sampled = kept.num_targets != final.num_targets
    sample = f"{kept.num_targets:,}{f' of {final.num_targets:,}' if is_sampled else ''} held-out {unit}"
    lines = [
        f"{name} on {sample}: {text(report.rounds[0])} before training, {text(kept)} after {where} ({seconds} in all)"
    ]
    on_all = f"{name} on all {final.num_targets:,} held-out {unit}: {text(final)}"
    if report.compact is not None:
        compact = report.compact
        if report.beside_compact is final:
            lines.append(f"{on_all} whole model, {text(compact)} compact model")
        else:
            lines[0] += f", {text(compact)} compact model"
            lines.append(on_all)
        lines.append(
            f"compact model: {compact.sparsity:.0%} of the prunable weights removed, {bytes_text(compact.bytes)}, "
            f"{compact.latency_ms:.1f} ms per {compact.latency_unit}"
        )
    elif is_sampled:
        lines.append(on_all)
    if report.over_first_work is not None:
        lines.append(over_first_work_line(report.over_first_work, final.round_number))
    lines += arm_lines(report)
    if final.emulated_s is not None:
        lines.append(f"emulated time: {duration_text(final.emulated_s)} on the virtual clock of the fleet")
    if report.compact is not None and isinstance(report.compact.sample, str):
        lines.append(f"it writes: {json.dumps(f'{report.compact.sample_prompt}{report.compact.sample}')}")
    lines += [f"warning: {warning}" for warning in report.warnings]
    verb = "generate" if report.task == "causal-lm" else "infer"
    lines.append(f"report:        {root / REPORT_PAGE} and {root / REPORT_JSON}")
    if report.compact is not None:
        lines.append(f"compact model: {root / 'compact'} (use it: fedspine-edge {verb} {root / 'compact'})")
    return [*lines, tuned_line(root)]


def tuned_line(root: Path) -> str:
    """Return a line with the path of the result: an adapter, or a whole checkpoint."""
    if (whole := whole_directory(root)) is not None:
        return f"model:         {whole} (a whole checkpoint: all weights are tuned, so there is no adapter)"
    return f"adapter:       {root / 'adapters' / 'peft'} (PEFT's format)"


def over_first_work_line(over: OverFirstWork, kept_round: int) -> str:
    """Describe the gain or loss against the model that the run's work started from, on the same examples."""
    before, gain = 100 * over.accuracy, 100 * over.accuracy_gain
    return (
        f"over the {over.work} that it began with: {before:.1f} % after round {over.round_number}, "
        f"{before + gain:.1f} % after round {kept_round} ({gain:+.1f} points), "
        f"loss {over.loss:.4f} -> {over.loss - over.loss_fall:.4f}"
    )


def arm_lines(report: Report) -> list[str]:
    """The arms of each device over the rounds, a line each, where they are not all the same."""
    devices, axes = arms_by_device(report), axes_of(report.config)
    if len({d.arm for one in devices for d in one.played if d is not None}) < MIN_ARMS:
        return []
    with_work = is_of_many_kinds(devices)
    lines = [
        f"  {one.name}: "
        + " ".join("-" if d is None else played_text(d, axes, with_work=with_work) for d in one.played)
        for one in devices[:MOST_SHOWN]
    ]
    return [f"arms ({axes.labels}) over the rounds:", *lines]


def _prompt(test_file: Path) -> str:
    """The first words, at most half of them, of the first held-out text that has a few."""
    with test_file.open(encoding="utf-8") as lines:
        for line in lines:
            words = str(json.loads(line).get("text", "")).split()
            if len(words) >= _FEW_WORDS:
                return " ".join(words[: min(_PROMPT_WORDS, len(words) // 2)])
    return ""


def shown_settings(settings: RunSettings) -> dict[str, str | int | float | bool]:
    """Settings for the report: names of files without their folders, and a broker without its password."""
    shown = flat(settings)
    for field in ("model", "artifact", "adapter", "data", "test", "emulate", "calibration"):
        shown[field] = Path(str(shown[field])).name
    if settings.broker not in EMBEDDED_BROKERS:
        shown["broker"] = str(BrokerAddress.parse(settings.broker))
    return shown
