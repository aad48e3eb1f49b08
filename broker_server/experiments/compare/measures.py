"""The measures of a run, each figure with its definition; pure. The definitions are ours unless a source is named.

Protocols after EdgeFlowerTune (arXiv 2605.08636): *quality under budget* (:func:`quality_within`), *cost to target*
(:func:`first_reach`), *robustness* (:func:`outcomes`, and the same figures under other fleets).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from broker_server.experiments.compare.trace import Point, Trace

EXPLORED_AFTER: Final = 10
"""Rounds after which a bandit should know the infeasible arms (``late_infeasible_plays_ratio``)."""


def first_reach(trace: Trace, target: float, *, sparse: bool = False) -> Point | None:
    """The first evaluated round at or above the target (perplexity: at or below), whose end counts; None if none is.

    Nothing is interpolated between rounds, and a later fall below the target takes nothing back.

    Args:
        trace: the run.
        target: accuracy or perplexity.
        sparse: whether the sub-model at the wanted sparsity has to reach it, not the whole model.
    """
    for point in trace.points:
        quality = point.sparse_quality if sparse else point.quality
        if quality is not None and trace.is_at_least(quality, target):
            return point
    return None


def quality_within(trace: Trace, *, seconds: float = math.inf, num_bytes: float = math.inf) -> float:
    """Quality after the last evaluated round that ended within a budget; before training if none did."""
    within = [point for point in trace.points if point.time_s <= seconds and point.num_bytes <= num_bytes]
    return (within[-1] if within else trace.points[0]).quality


def regret_curve(trace: Trace, oracle: Trace) -> list[float]:
    """Cumulated regret after each round, seconds: how much longer the rounds so far took than the oracle's.

    The sum over rounds of (this run's round time - the round time of the ``oracle`` method in the same comparison and
    with the same seed), over the rounds that both played. A method that prunes harder than the oracle thinks worth it
    can be below zero.
    """
    total, curve = 0.0, []
    for mine, best in zip(trace.rounds, oracle.rounds, strict=False):
        total += mine.seconds - best.seconds
        curve.append(total)
    return curve


def growth_exponent(curve: Sequence[float]) -> float | None:
    """Exponent b of the least-squares fit ``regret ~ a * round^b`` over the later half; below 1 is sublinear.

    None if a value of that half is not positive, or there are fewer than six rounds.
    """
    later = range(len(curve) // 2, len(curve))
    if len(curve) < 6 or any(curve[index] <= 0 for index in later):
        return None
    x = [math.log(index + 1) for index in later]
    y = [math.log(curve[index]) for index in later]
    return statistics.linear_regression(x, y).slope


def infeasible_plays_ratio(trace: Trace, *, after_round: int = 0) -> float | None:
    """Share of the arms given to devices that did not fit their memory or missed the deadline; None without any.

    Every arm counts that a device was given, those that were replaced within a round too.
    """
    plays = [play for entry in trace.rounds if entry.round_number > after_round for play in entry.plays]
    given = sum(play.num_attempts for play in plays)
    return sum(play.num_infeasible for play in plays) / given if given else None


def idle_ratio(trace: Trace) -> float | None:
    """Share of the devices' time spent waiting for the slowest of their round, in [0, 1); None if nothing is known.

    In a round, a device that finished after T_i waits for max_j T_j - T_i. The figure is the sum of that over devices
    and rounds, divided by the sum of max_j T_j over the same. Devices without a completion time are left out. T goes
    from the assignment to the stored update, emulated where the fleet is, and ends with the round at the latest.
    """
    waiting = total = 0.0
    for entry in trace.rounds:
        times = [play.completion_s for play in entry.plays if play.completion_s is not None]
        waiting += sum(max(times) - time for time in times)
        total += sum(max(times) for _ in times)
    return waiting / total if total > 0 else None


def outcomes(trace: Trace) -> Counter[str]:
    """Count the outcomes of devices in rounds: ``accepted``, ``rejected``, ``failed``, ``lost``, ``timed_out``."""
    return Counter(play.outcome for entry in trace.rounds for play in entry.plays)


def arms_by_class(traces: Sequence[Trace]) -> dict[str, dict[int, dict[str, float]]]:
    """Mean value on each axis that each class of devices played in each round, over the runs."""
    played: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        for entry in trace.rounds:
            for play in entry.plays:
                values = played[play.device_class, entry.round_number]
                for axis in trace.axes:
                    values[axis.name].append(float(axis.of(play.arm)))
    curves: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for (device_class, round_number), values in sorted(played.items()):
        curves[device_class][round_number] = {name: statistics.fmean(known) for name, known in values.items()}
    return dict(curves)


def median_or_none(values: Sequence[float]) -> float | None:
    """Median, where infinity stands for "never": None if the median is never, or there is no value.

    >>> median_or_none([3.0, 1.0, math.inf]), median_or_none([1.0, math.inf])
    (3.0, None)
    """
    if not values:
        return None
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None
