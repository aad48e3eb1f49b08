"""From the finished runs of a comparison to its summary; pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from broker_server.errors import RunFailedError
from broker_server.experiments.compare import measures
from broker_server.experiments.compare.config import Comparison, Method, RunKey
from broker_server.experiments.compare.summary_schema import (
    ArmAxis,
    ArmPoint,
    Budget,
    CurvePoint,
    FailedRun,
    Figure,
    MethodSummary,
    RegretPoint,
    Summary,
)
from broker_server.experiments.compare.trace import Point, Trace
from broker_server.versions import environment

ORACLE: Final = "oracle"
"""Method that regret is counted against."""

BUDGET_SHARES: Final = (0.25, 0.5, 1.0)
"""Budgets where none are given: shares of the least that any method (without a scenario) spent on all its rounds."""

BySeed = dict[int, Trace]
"""Finished runs of one method."""


def summarise(
    comparison: Comparison, finished: Mapping[RunKey, Trace], failed: Mapping[RunKey, str], created_at: float
) -> Summary:
    """Put the figures together.

    Args:
        comparison: the settings.
        finished: runs with a result.
        failed: runs that ended without one, and why.
        created_at: Unix seconds, UTC.

    Raises:
        RunFailedError: no run is finished.
    """
    if not finished:
        msg = "no run of the comparison is finished: nothing to summarise"
        raise RunFailedError(msg)
    runs = {method.name: _by_seed(method.name, finished) for method in comparison.methods}
    budgets = _budgets(comparison, runs)
    first = next(iter(finished.values()))
    done = {*finished, *failed}
    return Summary(
        title=comparison.title,
        is_quick=comparison.is_quick,
        created_at=created_at,
        task=first.task,
        clock=first.clock,
        target=comparison.target,
        sparsity=comparison.settings(comparison.run_keys[0]).sparsity or 0.0,
        artifact_bytes=first.artifact_bytes,
        seeds=comparison.seeds,
        reference=comparison.reference,
        axes=_axes(finished.values()),
        config=shown(comparison.shared),
        environment=environment(),
        methods={
            method.name: _method(comparison, method, runs[method.name], runs.get(_oracle_of(method), {}), budgets)
            for method in comparison.methods
        },
        failed=tuple(FailedRun(method=key.method, seed=key.seed, error=text) for key, text in failed.items()),
        missing=tuple(str(key) for key in comparison.run_keys if key not in done),
    )


def shown(settings: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Settings for people: files without their folders."""
    return {
        name: Path(value).name if name in {"model", "data", "test", "emulate"} and isinstance(value, str) else value
        for name, value in settings.items()
        if isinstance(value, str | int | float | bool)
    }


def figure(values: Sequence[float | None], *, unknown: float | None = None, num_finished: int = 0) -> Figure:
    """Median and spread of one figure.

    Args:
        values: by seed; None if there is none.
        unknown: value of a finished run without one in the median (infinity: never reached); None = left out.
        num_finished: finished runs.
    """
    known = [value for value in values if value is not None]
    counted = known if unknown is None else known + [unknown] * (num_finished - len(known))
    return Figure(
        median=measures.median_or_none(counted),
        min=min(known, default=None),
        max=max(known, default=None),
        values=tuple(values),
        num_known=len(known),
    )


def _by_seed(method: str, finished: Mapping[RunKey, Trace]) -> BySeed:
    return {key.seed: trace for key, trace in finished.items() if key.method == method}


def _oracle_of(method: Method) -> str:
    """The oracle under the same scenario."""
    return f"{ORACLE}+{method.scenario}" if method.scenario else ORACLE


def _budgets(comparison: Comparison, runs: Mapping[str, BySeed]) -> list[tuple[str, float]]:
    """Kinds and amounts; see :data:`BUDGET_SHARES`."""
    plain = [trace for method in comparison.methods if not method.scenario for trace in runs[method.name].values()]
    budgets: list[tuple[str, float]] = []
    for kind, given, spent in (
        ("time_s", comparison.budgets_s, _time_s),
        ("bytes", comparison.budgets_bytes, _num_bytes),
    ):
        least = min((spent(trace) for trace in plain), default=0.0)
        budgets += [(kind, amount) for amount in given or [share * least for share in BUDGET_SHARES]]
    return budgets


def _time_s(trace: Trace) -> float:
    return math.fsum(entry.seconds for entry in trace.rounds)


def _num_bytes(trace: Trace) -> float:
    return float(trace.points[-1].num_bytes)


def _method(
    comparison: Comparison, method: Method, runs: BySeed, oracle: BySeed, budgets: Iterable[tuple[str, float]]
) -> MethodSummary:
    def over_seeds(of: Callable[[Trace], float | None], unknown: float | None = None) -> Figure:
        values = [of(runs[seed]) if seed in runs else None for seed in comparison.seeds]
        return figure(values, unknown=unknown, num_finished=len(runs))

    def cost(of: Callable[[Point], float], *, sparse: bool = False) -> Figure:
        target = comparison.target

        def value(trace: Trace) -> float | None:
            point = None if target is None else measures.first_reach(trace, target, sparse=sparse)
            return None if point is None else of(point)

        return over_seeds(value, unknown=math.inf)

    quality, sparse_quality = over_seeds(lambda t: t.final_quality), over_seeds(lambda t: t.final_sparse_quality)
    is_causal = comparison.settings(comparison.run_keys[0]).task == "causal-lm"
    names = ("final_perplexity", "perplexity_at_sparsity") if is_causal else ("final_accuracy", "accuracy_at_sparsity")
    regrets = {seed: measures.regret_curve(runs[seed], oracle[seed]) for seed in runs if seed in oracle}
    regret_curve = _regret_curve([curve for curve in regrets.values() if curve])
    return MethodSummary(
        label=method.label,
        about=method.about,
        base=method.base,
        scenario=method.scenario,
        settings=shown(method.settings),
        num_finished=len(runs),
        time_to_target_s=cost(lambda point: point.time_s),
        bytes_to_target=cost(lambda point: float(point.num_bytes)),
        rounds_to_target=cost(lambda point: float(point.round_number)),
        time_to_target_at_sparsity_s=cost(lambda point: point.time_s, sparse=True),
        **dict(zip(names, (quality, sparse_quality), strict=True)),
        regret=figure([curve[-1] if (curve := regrets.get(seed)) else None for seed in comparison.seeds]),
        regret_exponent=measures.growth_exponent([point.median for point in regret_curve]),
        infeasible_plays_ratio=over_seeds(measures.infeasible_plays_ratio),
        late_infeasible_plays_ratio=over_seeds(
            lambda t: measures.infeasible_plays_ratio(t, after_round=measures.EXPLORED_AFTER)
        ),
        idle_ratio=over_seeds(measures.idle_ratio),
        total_time_s=over_seeds(_time_s),
        total_bytes=over_seeds(_num_bytes),
        peak_rss_bytes=over_seeds(lambda t: t.peak_rss_bytes),
        outcomes=dict(sum((measures.outcomes(trace) for trace in runs.values()), Counter[str]())),
        budgets=tuple(_budget(kind, amount, over_seeds) for kind, amount in budgets),
        curve=_curve(list(runs.values())),
        regret_curve=regret_curve,
        arms=tuple(
            ArmPoint(device_class=name, round_number=number, values=values)
            for name, rounds in measures.arms_by_class(list(runs.values())).items()
            for number, values in sorted(rounds.items())
        ),
    )


def _axes(traces: Iterable[Trace]) -> tuple[ArmAxis, ...]:
    """Every axis of the runs once, in their order."""
    return tuple(
        dict.fromkeys(
            ArmAxis(name=axis.name, label=axis.figure_label, is_share=axis.removes, is_whole=axis.kind is int)
            for trace in traces
            for axis in trace.axes
        )
    )


def _budget(kind: str, amount: float, over_seeds: Callable[[Callable[[Trace], float | None]], Figure]) -> Budget:
    if kind == "time_s":
        quality = over_seeds(lambda trace: measures.quality_within(trace, seconds=amount))
        return Budget(kind="time_s", amount=amount, quality=quality)
    quality = over_seeds(lambda trace: measures.quality_within(trace, num_bytes=amount))
    return Budget(kind="bytes", amount=amount, quality=quality)


def _curve(traces: Sequence[Trace]) -> tuple[CurvePoint, ...]:
    """Rounds that every run evaluated."""
    by_round = [{point.round_number: point for point in trace.points} for trace in traces]
    shared = sorted(set.intersection(*(set(points) for points in by_round))) if by_round else []
    return tuple(_curve_point(number, [points[number] for points in by_round]) for number in shared)


def _curve_point(round_number: int, points: Sequence[Point]) -> CurvePoint:
    qualities = [point.quality for point in points]
    sparse = [point.sparse_quality for point in points if point.sparse_quality is not None]
    return CurvePoint(
        round_number=round_number,
        time_s=statistics.median(point.time_s for point in points),
        bytes=statistics.median(float(point.num_bytes) for point in points),
        quality=statistics.median(qualities),
        quality_min=min(qualities),
        quality_max=max(qualities),
        sparse_quality=statistics.median(sparse) if sparse else None,
    )


def _regret_curve(curves: Sequence[Sequence[float]]) -> tuple[RegretPoint, ...]:
    """Rounds that all seeds played."""
    return tuple(
        RegretPoint(round_number=number, median=statistics.median(values), min=min(values), max=max(values))
        for number, values in enumerate(zip(*curves, strict=False), start=1)
    )
