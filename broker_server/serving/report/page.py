"""``report.html``: one self-contained page, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import UnsetType

from broker_server.serving.report.arms import MOST_SHOWN, arms_by_device, axes_of, is_of_many_kinds, played_text
from broker_server.serving.report.charts import all_charts
from broker_server.serving.report.quality import bytes_text, duration_text, metric_name, metric_text
from broker_server.serving.report.schema import Report, RoundEntry
from broker_server.serving.report.template import load_template, moment_text
from edge_runtime.wire.arms import PRUNING_RATIO


def render_page(report: Report) -> str:
    """HTML of a report; needs nothing from the network."""
    filters = {"bytes": bytes_text, "duration": duration_text, "percent": lambda value: f"{value:.1%}"}
    kept, axes = report.kept, axes_of(report.config)
    devices = arms_by_device(report)
    before, after = _quality(report, report.rounds[0]), _quality(report, kept)
    return load_template(Path(__file__).with_name("report.html.j2"), filters).render(
        report=report,
        metric=metric_name(report.task),
        unit="per token" if report.task == "causal-lm" else "right",
        kept=kept,
        is_sampled=kept.num_targets != report.final.num_targets,
        change=_change(report, before, after),
        change_class=_change_class(report, before, after),
        quality=lambda entry: _text(report, _quality(report, entry)),
        count=lambda entry: f"{entry.num_targets:,} {report.target_unit}",
        created=moment_text(report.created_at),
        sparse=_sparse_text(report),
        charts=all_charts(report),
        rounds=[(entry, _summary(entry)) for entry in report.rounds],
        arms=devices[:MOST_SHOWN] if axes else [],
        arm_labels=_listed([axis.label for axis in axes]),
        arm_form=axes.form,
        played_text=lambda played: played_text(played, axes, with_work=is_of_many_kinds(devices)),
        pruned=PRUNING_RATIO.of if axes.has(PRUNING_RATIO.name) else None,
    )


def _listed(words: Sequence[str]) -> str:
    """``pruning ratio, rank and batch size``."""
    *others, last = words or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _quality(report: Report, entry: object) -> float | None:
    value: float | UnsetType | None = getattr(entry, metric_name(report.task))
    return None if isinstance(value, UnsetType) else value


def _sparse_text(report: Report) -> str | None:
    value: float | UnsetType = getattr(report.final, f"{metric_name(report.task)}_at_sparsity")
    return None if isinstance(value, UnsetType) else metric_text(report.task, value)


def _text(report: Report, value: float | None) -> str:
    return "-" if value is None else metric_text(report.task, value)


def _change(report: Report, before: float | None, after: float | None) -> str:
    """Describe how much better the model became, for people."""
    if before is None or after is None:
        return ""
    if report.task == "causal-lm":
        return f"{abs(1 - after / before):.0%} {'lower' if after <= before else 'higher'} than before"
    return f"{100 * (after - before):+.1f} points"


def _change_class(report: Report, before: float | None, after: float | None) -> str:
    """Class of the change's colour: ``good``, ``bad``, or none if nothing changed."""
    if before is None or after is None or before == after:
        return ""
    return "good" if (after < before) == (report.task == "causal-lm") else "bad"


def _summary(entry: RoundEntry) -> dict[str, str]:
    """Figures of one round over its devices, for the table."""
    accepted = [device for device in entry.devices if device.outcome == "accepted"]
    measured = [device.measurements for device in entry.devices if device.measurements is not None]
    return {
        "updates": f"{len(accepted)} of {len(entry.devices)}" if entry.devices else "-",
        "train": _largest(duration_text, [m.train_s for m in measured]),
        "memory": _largest(bytes_text, [m.peak_rss_bytes for m in measured]),
        "up": bytes_text(sum(m.bytes_up for m in measured)) if entry.devices else "-",
        "down": bytes_text(sum(m.bytes_down for m in measured)) if entry.devices else "-",
        "missing": ", ".join(
            f"{d.device_id} {d.outcome.replace('_', ' ')}" for d in entry.devices if d not in accepted
        ),
    }


def _largest(text: Callable[[float], str], values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return text(max(known)) if known else "-"
