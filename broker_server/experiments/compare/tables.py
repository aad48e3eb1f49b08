"""Tables of a comparison, made from its summary alone: as Markdown for documents, and for the page."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from msgspec import UnsetType

from broker_server.experiments.compare.summary_schema import ArmAxis, ArmPoint, Figure, MethodSummary, Summary
from broker_server.serving.report.quality import bytes_text, duration_text, metric_name, metric_text
from edge_runtime.wire.arms import ONE_ARM

NONE = "-"
"""Cell of a figure that there is none of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; the first column names the method."""

    title: str
    note: str
    """Explanation of the figures, and of how they were measured."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self, level: int = 3) -> str:
        """The table as Markdown under a heading."""
        head = [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        body = [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"{'#' * level} {self.title}", "", self.note, "", *head, *body, ""])


def all_tables(summary: Summary) -> list[Table]:
    """Every table that there is something to say in."""
    tables = [
        overview(summary),
        quality_under_budget(summary),
        cost_to_target(summary),
        equal_sparsity(summary),
        robustness(summary),
        bandit(summary),
        arms(summary),
    ]
    return [table for table in tables if table.rows]


def to_markdown(summary: Summary, level: int = 2) -> str:
    """All tables, under a heading, with the runs that are not in them."""
    lines = [f"{'#' * level} {summary.title}", "", *(f"{line}\n" for line in remarks(summary))]
    return "\n".join([*lines, *(table.markdown(level + 1) for table in all_tables(summary))])


def remarks(summary: Summary) -> list[str]:
    """Return the remarks that a reader must know before the figures."""
    num_seeds = len(summary.seeds)
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''} ({', '.join(map(str, summary.seeds))})"
    clock = (
        "times are emulated: real training and real messages, modelled time (docs/emulation.md)"
        if summary.clock == "emulated"
        else "times are wall times of this machine's rounds, evaluation included"
    )
    artifact = (
        f"bytes are without the artifact, which each device downloads once ({bytes_text(summary.artifact_bytes)})"
    )
    spread = "a cell is the median over seeds, with the smallest and the largest in brackets"
    lines = [f"{seeds}; {spread}; {clock}; {artifact}."]
    if summary.failed:
        failed = "; ".join(f"{run.method} seed {run.seed}: {run.error}" for run in summary.failed)
        lines.append(f"Runs that failed: {failed}.")
    if summary.missing:
        lines.append(f"Runs that are not finished: {', '.join(summary.missing)}.")
    return lines


def overview(summary: Summary) -> Table:
    """Return the table of methods: the description of each, and the ends of its runs."""
    rows = [
        (
            method.label,
            method.about,
            f"{method.num_finished} of {len(summary.seeds)}",
            _spread(final_quality(method), _quality(summary)),
            _spread(sparse_quality(method), _quality(summary)),
        )
        for method in _plain(summary)
    ]
    name = metric_name(summary.task)
    return Table(
        title="Methods",
        note=f"Final {name} on all held-out examples: the whole model, and the part of it that is left at a pruning "
        f"ratio of {summary.sparsity:g}.",
        columns=("method", "what it is", "runs", f"final {name}", f"{name} at sparsity {summary.sparsity:g}"),
        rows=tuple(rows),
    )


def quality_under_budget(summary: Summary) -> Table:
    """EdgeFlowerTune's first protocol."""
    methods = _plain(summary)
    budgets = methods[0].budgets if methods else ()
    columns = [
        f"{duration_text(budget.amount)}" if budget.kind == "time_s" else bytes_text(budget.amount)
        for budget in budgets
    ]
    rows = [(method.label, *(_spread(b.quality, _quality(summary)) for b in method.budgets)) for method in methods]
    return Table(
        title="Quality under budget",
        note=f"Held-out {metric_name(summary.task)} after the last evaluated round that ended within the budget of "
        f"{summary.clock} time, or of payload bytes from and to all devices.",
        columns=("method", *columns),
        rows=tuple(rows) if budgets else (),
    )


def cost_to_target(summary: Summary) -> Table:
    """EdgeFlowerTune's second protocol."""
    if summary.target is None:
        return Table(title="Cost to target", note="", columns=(), rows=())
    reference = summary.methods[summary.reference]
    rows = [
        (
            method.label,
            f"{method.time_to_target_s.num_known} of {method.num_finished}",
            _spread(method.time_to_target_s, duration_text),
            _times(method.time_to_target_s, reference.time_to_target_s),
            _spread(method.rounds_to_target, lambda value: f"{value:g}"),
            _spread(method.bytes_to_target, bytes_text),
            _times(method.bytes_to_target, reference.bytes_to_target),
            _spread(method.time_to_target_at_sparsity_s, duration_text),
            _spread(method.peak_rss_bytes, bytes_text),
        )
        for method in _plain(summary)
    ]
    target = metric_text(summary.task, summary.target)
    return Table(
        title="Cost to target",
        note=f"Until the end of the first evaluated round with a held-out {metric_name(summary.task)} of {target} or "
        f"{'less' if summary.task == 'causal-lm' else 'more'}. A run that never got there counts as infinitely "
        "expensive; the spread is over those that did. Memory is the largest resident set of a device's process on "
        "this machine.",
        columns=(
            "method", "reached", f"{summary.clock} time", f"times {reference.label}'s", "rounds", "bytes",
            f"times {reference.label}'s", "time, model at sparsity", "memory",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def equal_sparsity(summary: Summary) -> Table:
    """Final quality of the deployed sub-models, all at the same size."""
    reference = summary.methods[summary.reference]
    rows = [
        (
            method.label,
            _spread(sparse_quality(method), _quality(summary)),
            _difference(summary, sparse_quality(method), sparse_quality(reference)),
            _difference(summary, sparse_quality(method), final_quality(method)),
        )
        for method in _plain(summary)
        if sparse_quality(method).num_known
    ]
    name = metric_name(summary.task)
    how = "ratio of the medians" if summary.task == "causal-lm" else "difference of the medians, in points"
    return Table(
        title=f"Final {name} at equal sparsity",
        note=f"The sub-model at a pruning ratio of {summary.sparsity:g}, on all held-out examples; {how}.",
        columns=("method", f"{name} at sparsity", f"against {reference.label}", "against its own whole model"),
        rows=tuple(rows),
    )


def robustness(summary: Summary) -> Table:
    """EdgeFlowerTune's third protocol."""
    shown = {method.base for method in summary.methods.values() if method.scenario}
    rows = []
    for method in summary.methods.values():
        if method.base not in shown and not any(name != "accepted" for name in method.outcomes):
            continue
        total = sum(method.outcomes.values())
        plain = summary.methods.get(method.base, method)
        rows.append(
            (
                method.label,
                method.scenario or "as above",
                f"{method.outcomes.get('accepted', 0) / total:.1%}" if total else NONE,
                ", ".join(f"{n} {o.replace('_', ' ')}" for o, n in sorted(method.outcomes.items()) if o != "accepted")
                or NONE,
                _spread(final_quality(method), _quality(summary)),
                _difference(summary, final_quality(method), final_quality(plain)) if method.scenario else NONE,
                _spread(method.time_to_target_s, duration_text),
                _times(method.time_to_target_s, plain.time_to_target_s) if method.scenario else NONE,
            )
        )
    return Table(
        title="Robustness",
        note="Outcomes of the devices' assignments, and the same methods under other conditions.",
        columns=(
            "method", "conditions", "updates accepted", "others", f"final {metric_name(summary.task)}", "change",
            "time to target", "times",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def bandit(summary: Summary) -> Table:
    """Return the table of the cost of choosing arms."""
    rows = [
        (
            method.label,
            _spread(method.regret, lambda value: f"{value:.0f} s"),
            NONE if method.regret_exponent is None else f"{method.regret_exponent:.2f}",
            _spread(method.idle_ratio, _percent),
            _spread(method.infeasible_plays_ratio, _percent),
            _spread(method.late_infeasible_plays_ratio, _percent),
            _spread(method.total_time_s, duration_text),
        )
        for method in _plain(summary)
    ]
    return Table(
        title="Choice of arms",
        note="Regret: how much longer all rounds took than the oracle's (negative: shorter). Growth: exponent of the "
        "median regret over the later half of the rounds, below 1 is sublinear. Idle: share of the devices' time spent "
        "waiting for the slowest of their round. Infeasible: share of the arms given to devices that did not fit their "
        "memory or missed the deadline.",
        columns=(
            "method", "regret", "growth", "idle", "infeasible", "infeasible after round 10",
            f"{summary.clock} time of all rounds",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def arms(summary: Summary) -> Table:
    """Mean arm of each class in the first and the last third of the rounds."""
    rows = []
    for method in _plain(summary):
        for device_class, points in itertools.groupby(method.arms, key=lambda point: point.device_class):
            known = list(points)
            third = max(1, len(known) // 3)
            cells = []
            for part in (known[:third], known[-third:]):
                means = [_mean(axis, part) for axis in summary.axes]
                cells.append(" : ".join(means) if any(mean != NONE for mean in means) else ONE_ARM)
            rows.append((method.label, device_class, *cells))
    return Table(
        title="Arms by class of device",
        note=f"Mean {' : '.join(axis.label for axis in summary.axes) or 'arm'} over devices, rounds and seeds.",
        columns=("method", "class", "first third of the rounds", "last third"),
        rows=tuple(rows),
    )


def _mean(axis: ArmAxis, points: Sequence[ArmPoint]) -> str:
    """Mean value on an axis, with the digits that it deserves; :data:`NONE` where the arms have no such axis."""
    values = [point.values[axis.name] for point in points if axis.name in point.values]
    return f"{sum(values) / len(values):.{1 if axis.is_whole else 2}f}" if values else NONE


def final_quality(method: MethodSummary) -> Figure:
    """Accuracy or perplexity of the whole model."""
    return _the_one(method.final_accuracy, method.final_perplexity)


def sparse_quality(method: MethodSummary) -> Figure:
    """Accuracy or perplexity of the sub-model."""
    return _the_one(method.accuracy_at_sparsity, method.perplexity_at_sparsity)


def _the_one(*figures: Figure | UnsetType) -> Figure:
    return next(figure for figure in figures if isinstance(figure, Figure))


def _plain(summary: Summary) -> list[MethodSummary]:
    """Methods under the conditions of all, that have a finished run."""
    return [method for method in summary.methods.values() if not method.scenario and method.num_finished]


def _quality(summary: Summary) -> Callable[[float], str]:
    return lambda value: metric_text(summary.task, value)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _spread(figure: Figure, text: Callable[[float], str]) -> str:
    """``median (min to max)``; the spread only where there is more than one value."""
    if figure.min is None or figure.max is None:
        return NONE
    middle = "median not reached" if figure.median is None else text(figure.median)
    return f"{middle} ({text(figure.min)} to {text(figure.max)})" if figure.num_known > 1 else middle


def _times(figure: Figure, reference: Figure) -> str:
    """Ratio of medians."""
    if figure.median is None or not reference.median:
        return NONE
    return f"{figure.median / reference.median:.2f}"


def _difference(summary: Summary, figure: Figure, reference: Figure) -> str:
    if figure.median is None or reference.median is None:
        return NONE
    if summary.task == "causal-lm":
        return f"{figure.median / reference.median:.3f}"
    return f"{100 * (figure.median - reference.median):+.1f}"
