"""Charts of a report, as SVG text to embed: one function a chart, one look for all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from broker_server.serving.report.arms import arms_by_device, axes_of, natural
from broker_server.serving.report.quality import bytes_text, metric_name
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.formats.manifest import Task

COLOURS: Final = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")
"""Told apart by most colour-blind readers in this order."""

LEGEND_WIDTH: Final = 60
"""Characters of the arms that stand side by side in a legend."""

WIDE: Final = 4.0
"""Perplexities whose largest is so many times the smallest are drawn on a logarithmic scale."""

_STYLE: Final[Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#475569",
    "axes.titlecolor": "#0f172a",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e2e8f0",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedspine",
}


def all_charts(report: Report) -> list[str]:
    """Every chart of a report, as SVG elements."""
    charts: Sequence[Callable[[Report, Axes], None]] = (
        quality_over_rounds,
        quality_over_time,
        *([arms_per_device] if axes_of(report.config) else []),
        time_per_device,
        step_time_per_arm,
        bytes_per_round,
        memory_per_device,
    )
    return [draw(partial(chart, report), number) for number, chart in enumerate(charts)]


def quality_over_rounds(report: Report, axes: Axes) -> None:
    """Held-out quality after each round."""
    _quality_line(report, axes, {r.round_number: float(r.round_number) for r in report.rounds})
    axes.set(title=f"Held-out {metric_name(report.task)} by round", xlabel="round (0 = before training)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def quality_over_time(report: Report, axes: Axes) -> None:
    """Held-out quality against the seconds spent in rounds: emulated ones where there are."""
    is_emulated = report.final.emulated_s is not None
    elapsed = itertools.accumulate((r.emulated_s or 0.0) if is_emulated else r.seconds for r in report.rounds)
    _quality_line(report, axes, dict(zip((r.round_number for r in report.rounds), elapsed, strict=True)))
    axes.set(
        title=f"Held-out {metric_name(report.task)} by time",
        xlabel=f"{'emulated ' if is_emulated else ''}seconds since the start of round 0",
    )


def arms_per_device(report: Report, axes: Axes) -> None:
    """Each device's arm by round on the method's first axis; its values on others stand beside each point."""
    first, *others = axes_of(report.config)
    for colour, one in zip(itertools.cycle(COLOURS), arms_by_device(report)[: len(COLOURS)], strict=False):
        points = [(number, entry.arm) for number, entry in enumerate(one.played, start=1) if entry is not None]
        heights = [first.of(arm) for _, arm in points]
        axes.plot([number for number, _ in points], heights, color=colour, marker="o", markersize=4, label=one.name)
        for (number, arm), height in zip(points, heights, strict=True):
            beside = ":".join(axis.format(axis.of(arm)) for axis in others)
            axes.annotate(beside, (number, height), (4, 4), textcoords="offset points", fontsize=7)
    beside = f", and {':'.join(axis.label for axis in others)} beside it" if others else ""
    axes.set(title=f"Arms by round: {first.label}{beside}", xlabel="round", ylabel=first.label)
    axes.set_ylim(bottom=-0.03 if first.removes else 0)
    if first.choices:
        axes.set_yticks(range(1, len(first.choices) + 1), first.choices)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    if axes.get_lines():
        axes.legend(loc="upper left", ncols=2)


def time_per_device(report: Report, axes: Axes) -> None:
    """Seconds of training of each device, summed over rounds, one colour an arm."""
    known = axes_of(report.config)
    devices = sorted({d.device_id for d in _trained(report)}, key=natural)
    bottoms = dict.fromkeys(devices, 0.0)
    for colour, arm in zip(itertools.cycle(COLOURS), _arms(report), strict=False):
        seconds = [
            sum(
                d.measurements.train_s
                for d in _trained(report)
                if d.measurements and (d.device_id, known.words(d.arm)) == (i, arm)
            )
            for i in devices
        ]
        axes.bar(devices, seconds, bottom=list(bottoms.values()), color=colour, width=0.6, label=arm)
        bottoms = {i: bottoms[i] + s for i, s in zip(devices, seconds, strict=True)}
    axes.set(title=f"Training time by device{' and arm' if known else ''}", ylabel="seconds")
    axes.tick_params(axis="x", rotation=0 if len(devices) <= 6 else 45)
    if known:
        _arm_legend(axes)


def step_time_per_arm(report: Report, axes: Axes) -> None:
    """Spread of the median step time, by arm."""
    _boxes(report, axes, lambda d: None if d.measurements is None else d.measurements.step_s_p50)
    by_arm = " by arm" if axes_of(report.config) else ""
    axes.set(title=f"Time of an optimizer step{by_arm}", ylabel="seconds (median of an assignment)")


def bytes_per_round(report: Report, axes: Axes) -> None:
    """Payload bytes up and down, by round."""
    rounds = [r for r in report.rounds if r.devices]
    for offset, name in ((-0.2, "bytes_up"), (0.2, "bytes_down")):
        heights = [sum(getattr(d.measurements, name) for d in r.devices if d.measurements) for r in rounds]
        positions = [r.round_number + offset for r in rounds]
        label = "from devices" if name == "bytes_up" else "to devices"
        axes.bar(positions, heights, width=0.38, color=COLOURS[int(offset > 0)], label=label)
    axes.set(title="Bytes over the network by round", xlabel="round", ylabel="payload of all devices")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    axes.legend(loc="upper right", ncols=2)
    axes.margins(y=0.2)


def memory_per_device(report: Report, axes: Axes) -> None:
    """Largest resident set of each device's process so far, by round."""
    devices = sorted({d.device_id for d in _trained(report)}, key=natural)
    for colour, device_id in zip(itertools.cycle(COLOURS), devices, strict=False):
        points = [
            (r.round_number, d.measurements.peak_rss_bytes)
            for r in report.rounds
            for d in r.devices
            if d.device_id == device_id and d.measurements
        ]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.5, label=device_id)
    axes.set(title="Peak memory of each device so far", xlabel="round", ylabel="resident set of its process")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    if 0 < len(devices) <= len(COLOURS):
        axes.legend(loc="lower center", ncols=4)


def _quality_line(report: Report, axes: Axes, places: Mapping[int, float]) -> None:
    """Quality of each round at its place on the horizontal axis; only points of the same examples are joined."""
    by_count: dict[int, list[tuple[float, float]]] = {}
    for entry in report.rounds:
        if (value := _quality(report, entry)) is not None:
            by_count.setdefault(entry.num_targets, []).append((places[entry.round_number], value))
    for colour, (count, points) in zip(itertools.cycle(COLOURS[:1] + COLOURS[2:]), by_count.items(), strict=False):
        label = f"global model{_on(report, count)}"
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=2, label=label)
    final = report.final
    if final.num_targets and final.num_targets not in by_count and (value := _quality(report, final)) is not None:
        label = f"global model{_on(report, final.num_targets)}"
        place = places[final.round_number]
        axes.plot([place], [value], color=COLOURS[3], marker="D", markersize=6, linestyle="none", label=label)
    if report.compact is not None and (value := _quality(report, report.compact)) is not None:
        count = report.compact.num_targets or final.num_targets
        label = f"compact model{_on(report, count)}, {report.compact.sparsity:.0%} removed"
        axes.axhline(value, color=COLOURS[1], linestyle="--", linewidth=1.5, label=label)
    drawn = [value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float)]
    if not drawn:
        axes.text(0.5, 0.5, "not measured: the server has no held-out examples", ha="center", transform=axes.transAxes)
        return
    quality_axis(axes, report.task, is_log=max(drawn) > WIDE * min(drawn))
    axes.legend(loc="best")


def _on(report: Report, count: int) -> str:
    return f", {count:,} {report.target_unit}" if count else ""


def quality_axis(axes: Axes, task: Task, *, is_log: bool) -> None:
    """Name, unit and scale of a vertical axis of quality.

    Args:
        axes: of the chart.
        task: decides which figure is drawn.
        is_log: whether perplexities spread so widely that they need a logarithmic scale, which the name then says.
    """
    if task != "causal-lm":
        axes.set_ylabel("examples right")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        return
    axes.set_ylabel(f"perplexity per token{', logarithmic scale' if is_log else ''}")
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if _leading(value) in {2, 5} else "")
        )


def _leading(value: float) -> int:
    return int(f"{value:e}"[0])


def _boxes(report: Report, axes: Axes, figure_of: Callable[[DeviceRecord], float | None]) -> None:
    arms, known = _arms(report), axes_of(report.config)
    for position, (colour, arm) in enumerate(zip(itertools.cycle(COLOURS), arms, strict=False)):
        values = [value for d in _trained(report) if known.words(d.arm) == arm and (value := figure_of(d)) is not None]
        axes.boxplot(
            [values],
            positions=[position],
            widths=0.5,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
            medianprops={"color": colour, "linewidth": 2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
            flierprops={"markeredgecolor": colour, "markersize": 4},
        )
    axes.set_xticks(range(len(arms)), [arm.replace(", ", ",\n") if len(known) > 2 else arm for arm in arms])
    axes.set_ylim(bottom=0)


def _quality(report: Report, entry: object) -> float | None:
    value = getattr(entry, metric_name(report.task))
    return value if isinstance(value, float) else None


def _trained(report: Report) -> Iterator[DeviceRecord]:
    return (d for r in report.rounds for d in r.devices if d.measurements)


def _train_s(device: DeviceRecord) -> float:
    return 0.0 if device.measurements is None else device.measurements.train_s


def _arms(report: Report) -> list[str]:
    """Every arm that was trained, in words, the dearest first."""
    known = axes_of(report.config)
    keyed = {known.costs(device.arm): known.words(device.arm) for device in _trained(report)}
    return [keyed[key] for key in sorted(keyed, reverse=True)]


def _arm_legend(axes: Axes) -> None:
    if labels := axes.get_legend_handles_labels()[1]:
        num_columns = max(1, min(3, LEGEND_WIDTH // max(map(len, labels))))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=num_columns)


def draw(chart: Callable[[Axes], None], number: int) -> str:
    """One chart as an ``<svg>`` element whose ids do not clash with those of others on the page.

    Args:
        chart: draws into the axes.
        number: unique on the page.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": f"fedspine-{number}"}):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        chart(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for attribute in ('id="', 'href="#', "url(#"):
        svg = svg.replace(attribute, f"{attribute}c{number}-")
    return svg
