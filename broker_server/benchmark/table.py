"""A benchmark for people: one row for each engine, ratios to ours in brackets, and remarks."""

from __future__ import annotations

from broker_server.benchmark.schema import BenchReport, EngineFigures
from broker_server.benchmark.settings import LOSS_STEPS, LOSS_TOLERANCE, QUOTABLE_RUNS
from broker_server.serving.report.quality import bytes_text

_COLUMNS = ("engine", "arm", "base", "s per step", "tokens/s", "peak RSS", "cold start", "loss after 50", "gap")


def render(report: BenchReport) -> str:
    """The report as lines of text, aligned."""
    rows = [_COLUMNS, *(_row(name, figures) for name, figures in report.engines.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([_title(report), "", *table, "", *_remarks(report), ""])


def differing(report: BenchReport) -> list[str]:
    """A sentence for each engine that does not do the work that it is measured by."""
    return [
        f"{name} does not do the same work as {figures.reference}: losses differ by up to {figures.loss_gap:.2g} nats "
        f"(at most {LOSS_TOLERANCE:g}), {figures.num_trainable} elements are trained"
        for name, figures in report.engines.items()
        if figures.same_work is False
    ]


def _title(report: BenchReport) -> str:
    given = report.settings
    targets = str(given["targets"] or "all linear layers").replace(",", ", ")
    return (
        f"{report.model_name}, {given['task']}, {given['batch_size']} x {given['length']} tokens, LoRA on {targets}; "
        f"{given['threads']} threads, medians of {given['runs']} runs of {given['steps']} steps; {report.date}"
    )


def _row(name: str, figures: EngineFigures) -> tuple[str, ...]:
    ratio = figures.to_fused
    gap = "-" if figures.loss_gap is None else f"{figures.loss_gap:.1e}"
    return (
        name,
        figures.arm,
        figures.base,
        f"{figures.step_s_p50:.4f} ({ratio.step_s_p50:.2f})",
        f"{figures.tokens_per_s:.0f} ({ratio.tokens_per_s:.2f})",
        f"{bytes_text(figures.peak_rss_bytes)} ({ratio.peak_rss_bytes:.2f})",
        f"{figures.cold_start_s:.2f} s ({ratio.cold_start_s:.2f})",
        f"{figures.loss_after_50:.5f}",
        gap,
    )


def _remarks(report: BenchReport) -> list[str]:
    limit, machine = report.limit, report.machine
    brackets = (
        "In brackets: of fused. Gap: largest difference from the losses of the engine that does the same work, "
        f"after 0 to {LOSS_STEPS} steps."
    )
    share = (
        f"limit_ratio {report.limit_ratio:.3f}: {limit.step_flops / 1e9:.2f} GFLOP a step at "
        f"{limit.best_flops_per_s / 1e9:.1f} GFLOP/s, onnxruntime's best MatMul here, take {limit.step_s:.4f} s; "
        f"{report.limit_ratio_per_shape:.3f} at each shape's own best, {report.limit_ratio_p50:.3f} at "
        f"{limit.p50_flops_per_s / 1e9:.1f} GFLOP/s, the best median."
    )
    where = (
        f"{machine['system']}, {machine['processor'] or 'unknown processor'}, {machine['cores']} cores, "
        f"load {machine['load_before']} before, {machine['load_after']} after."
    )
    lines = [brackets, share, where]
    references = {figures.reference for figures in report.engines.values()}
    lines += [
        f"{name} trains other frozen weights ({figures.base}) than ours: that both do the same work is not shown."
        for name, figures in report.engines.items()
        if figures.reference is None and name not in references
    ]
    if int(report.settings["runs"] or 0) < QUOTABLE_RUNS:
        lines.append(f"Fewer than {QUOTABLE_RUNS} runs: a look, not a result.")
    return lines + [f"NOT THE SAME WORK: {line}" for line in differing(report)]
