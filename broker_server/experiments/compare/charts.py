"""Charts of a comparison, made from its summary alone, as SVG text; the look is the report's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from broker_server.experiments.compare.summary_schema import ArmAxis, ArmPoint, Figure, MethodSummary, Summary
from broker_server.experiments.compare.tables import final_quality, sparse_quality
from broker_server.serving.report.charts import COLOURS, WIDE, draw, quality_axis
from broker_server.serving.report.quality import bytes_text, duration_text, metric_name

Chart = Callable[[Axes], None]

_STYLES = ("-", "--", ":", "-.")
"""Line styles, changed where the colours begin again."""


def all_charts(summary: Summary) -> list[str]:
    """Every chart that there is something to show in, as SVG elements."""
    methods = _plain(summary)
    charts: list[Chart] = [partial(quality_over_time, summary), partial(quality_over_bytes, summary)]
    if any(method.time_to_target_s.num_known for method in methods):
        charts.append(partial(time_to_target, summary))
    if any(sparse_quality(method).num_known for method in methods):
        charts.append(partial(quality_at_sparsity, summary))
    if any(method.regret_curve for method in methods):
        charts.append(partial(regret, summary))
    if any(method.idle_ratio.num_known for method in methods):
        charts.append(partial(idle, summary))
    for method in methods:
        if _changes(method.arms):
            names = {name for point in method.arms for name in point.values}
            charts += [partial(arms_by_class, method, axis) for axis in summary.axes if axis.name in names]
    return [draw(chart, number) for number, chart in enumerate(charts)]


def quality_over_time(summary: Summary, axes: Axes) -> None:
    """Held-out quality against time, one line a method, the band from the worst to the best seed."""
    _curves(summary, axes, lambda method: [point.time_s for point in method.curve])
    axes.set(title=f"Held-out {metric_name(summary.task)} over time", xlabel=f"{summary.clock} time of the rounds")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))


def quality_over_bytes(summary: Summary, axes: Axes) -> None:
    """Held-out quality against payload bytes."""
    _curves(summary, axes, lambda method: [point.bytes for point in method.curve])
    axes.set(title=f"Held-out {metric_name(summary.task)} over bytes", xlabel="from and to all devices")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))


def time_to_target(summary: Summary, axes: Axes) -> None:
    """Time to the target; no bar where half of the seeds or more never reached it."""
    _bars(axes, [(method.label, method.time_to_target_s) for method in _plain(summary)], 0)
    axes.set(title="Time to target", xlabel=f"{summary.clock} time; line: smallest to largest of the seeds")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))


def quality_at_sparsity(summary: Summary, axes: Axes) -> None:
    """Final quality of the whole model and of the sub-model at the wanted sparsity."""
    methods = _plain(summary)
    for colour, marker, label, of in (
        (COLOURS[7], "|", "whole model", final_quality),
        (COLOURS[0], "o", f"at sparsity {summary.sparsity:g}", sparse_quality),
    ):
        known = [(row, of(method)) for row, method in enumerate(methods) if of(method).median is not None]
        axes.plot(
            [figure.median or 0.0 for _, figure in known],
            [row for row, _ in known],
            color=colour, marker=marker, markersize=8, linestyle="none", label=label,
        )  # fmt: skip
        for row, figure in known:
            axes.plot(_ends(figure), [row, row], color=colour, linewidth=1.2)
    _name_rows(axes, [method.label for method in methods])
    if summary.task != "causal-lm":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set(title=f"Final {metric_name(summary.task)} at equal sparsity")
    axes.legend(loc="best")


def regret(summary: Summary, axes: Axes) -> None:
    """Cumulated regret over the rounds, median and spread over seeds."""
    for (colour, style), method in zip(_looks(), _plain(summary), strict=False):
        rounds = [point.round_number for point in method.regret_curve]
        if not rounds:
            continue
        axes.plot(
            rounds,
            [point.median for point in method.regret_curve],
            color=colour, linestyle=style, linewidth=1.8, label=method.label,
        )  # fmt: skip
        low, high = [p.min for p in method.regret_curve], [p.max for p in method.regret_curve]
        axes.fill_between(rounds, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set(title="Cumulated regret against the oracle", xlabel="round", ylabel=f"seconds ({summary.clock})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=7)


def idle(summary: Summary, axes: Axes) -> None:
    """Share of the devices' time spent waiting for the slowest."""
    _bars(axes, [(method.label, method.idle_ratio) for method in _plain(summary)], 1)
    axes.set(title="Idle time of the devices", xlabel="share of time spent waiting for the slowest of a round")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def arms_by_class(method: MethodSummary, arm_axis: ArmAxis, axes: Axes) -> None:
    """Mean value of each class on one axis of the arms, over the rounds."""
    played = [point for point in method.arms if arm_axis.name in point.values]
    axes.set(title=f"{method.label}: {arm_axis.label} by class of device", xlabel="round")
    if arm_axis.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    grouped = itertools.groupby(played, key=lambda point: point.device_class)
    for colour, (device_class, points) in zip(itertools.cycle(COLOURS), grouped, strict=False):
        known = list(points)
        axes.plot(
            [point.round_number for point in known],
            [point.values[arm_axis.name] for point in known],
            color=colour, marker="o", markersize=3, linewidth=1.5, label=device_class,
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.legend(loc="best")


def _curves(summary: Summary, axes: Axes, costs: Callable[[MethodSummary], Sequence[float]]) -> None:
    for (colour, style), method in zip(_looks(), _plain(summary), strict=False):
        x = costs(method)
        qualities = [point.quality for point in method.curve]
        axes.plot(x, qualities, color=colour, linestyle=style, linewidth=1.8, label=method.label)
        low, high = [point.quality_min for point in method.curve], [point.quality_max for point in method.curve]
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    if summary.target is not None:
        axes.axhline(summary.target, color="#94a3b8", linestyle="--", linewidth=1)
    quality_axis(axes, summary.task, is_log=_spans_decades(summary))
    axes.legend(loc="best", fontsize=7, ncols=2)


def _spans_decades(summary: Summary) -> bool:
    """Return whether perplexities need a logarithmic axis; with a narrow range, such an axis would have no labels."""
    values = [value for method in _plain(summary) for p in method.curve for value in (p.quality_min, p.quality_max)]
    return max(values, default=1.0) > WIDE * min(values, default=1.0)


def _bars(axes: Axes, figures: Sequence[tuple[str, Figure]], colour: int) -> None:
    for row, (_, figure) in enumerate(figures):
        if figure.median is not None:
            axes.barh(row, figure.median, color=COLOURS[colour], height=0.6, alpha=0.8)
        if figure.num_known > 1:
            axes.plot(_ends(figure), [row, row], color="#0f172a", linewidth=1.2)
    _name_rows(axes, [name for name, _ in figures])


def _ends(figure: Figure) -> list[float]:
    """Smallest and largest value of a figure that has some."""
    return [figure.min or 0.0, figure.max or 0.0]


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def _looks() -> itertools.chain[tuple[str, str]]:
    """Colour and line style, by method."""
    return itertools.chain.from_iterable([(colour, style) for colour in COLOURS] for style in itertools.cycle(_STYLES))


def _changes(arms: Sequence[ArmPoint]) -> bool:
    """Return whether more than one arm was played."""
    return len({tuple(sorted(point.values.items())) for point in arms}) > 1


def _plain(summary: Summary) -> list[MethodSummary]:
    return [method for method in summary.methods.values() if not method.scenario and method.num_finished]


def _duration(seconds: float) -> str:
    """As :func:`duration_text`, short enough for an axis."""
    if seconds < 60:
        return duration_text(seconds)
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
