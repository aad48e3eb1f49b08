"""Findings about a run that ended: rounds without effect, quality that fell, a pruning ratio that no device trained.

Each finding is one line with the likely cause and the option to change. The thresholds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from broker_server.serving.report.arms import axes_of
from broker_server.serving.report.quality import metric_name, metric_text, plural
from broker_server.serving.report.schema import Compact, RoundEntry
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import PRUNING_RATIO, ArmError

MIN_ACCURACY_GAP: Final = 0.01
"""Accuracies that differ by less, or by less than the standard error of their sample, are not called different."""
MIN_PERPLEXITY_RATIO: Final = 1.02
"""Perplexities whose ratio is smaller are not called different."""
MAX_LOSS_GAP: Final = 1e-3
"""Losses of one model in two graphs that differ by more, relative to losses beyond 1, are called different."""
MAX_DETAIL: Final = 160
"""Characters of a device's reason in a finding."""

Config = Mapping[str, str | int | float | bool]


def find_warnings(
    task: Task, rounds: Sequence[RoundEntry], final_round: int, compact: Compact | None, config: Config
) -> tuple[str, ...]:
    """Lines for the terminal and the report, worst first; none for a run that went well.

    Args:
        task: of the run.
        rounds: all rounds, 0 first.
        final_round: the round whose adapter the run keeps.
        compact: the compact model, or None.
        config: settings of the run.
    """
    return (
        *_worse_than_before(task, rounds, final_round, config),
        *_empty_rounds(rounds, config),
        *_unchanged_rounds(rounds, config),
        *_rising_loss(task, rounds, final_round, config),
        *_better_round(task, rounds, final_round),
        *_untrained_ratio(compact, config),
        *_not_finite(rounds),
        *_unlike_whole(_entry(rounds, final_round), compact),
    )


def is_better(task: Task, one: RoundEntry, other: RoundEntry) -> bool:
    """Return whether a round is better than another by more than chance: both measured, on the same examples."""
    first, second = _figure(task, one), _figure(task, other)
    if first is None or second is None or one.num_targets != other.num_targets:
        return False
    if task == "causal-lm":
        return second > first * MIN_PERPLEXITY_RATIO
    error = math.sqrt(first * (1 - first) / max(1, one.num_targets))
    return first - second > max(MIN_ACCURACY_GAP, error)


def _worse_than_before(task: Task, rounds: Sequence[RoundEntry], final_round: int, config: Config) -> Iterator[str]:
    before, after = rounds[0], _entry(rounds, final_round)
    if after is not None and is_better(task, before, after):
        yield (
            f"the model got worse: {metric_name(task)} {_text(task, before)} before training, {_text(task, after)} "
            f"after round {after.round_number}; lower --learning-rate{_now(config, 'learning_rate')}, or train less"
        )


def _empty_rounds(rounds: Sequence[RoundEntry], config: Config) -> Iterator[str]:
    empty = [entry for entry in rounds[1:] if not entry.was_used]
    if not empty:
        return
    last = empty[-1]
    why = last.discarded or next(
        (f"{d.device_id} {d.outcome}: {d.detail}" for d in last.devices), "no device took part"
    )
    advice = ""
    if any(d.reason == "diverged" for d in last.devices):
        advice = f"; training diverges: lower --learning-rate{_now(config, 'learning_rate')}"
    yield f"{_named(empty)} used no update ({why[:MAX_DETAIL]}){advice}"


def _unchanged_rounds(rounds: Sequence[RoundEntry], config: Config) -> Iterator[str]:
    same = [entry for entry in rounds[1:] if entry.is_unchanged]
    if same:
        yield (
            f"{_named(same)} left the adapter as it was, to the last bit, although updates were used: raise "
            f"--learning-rate{_now(config, 'learning_rate')}, or look at the devices' data"
        )


def _rising_loss(task: Task, rounds: Sequence[RoundEntry], final_round: int, config: Config) -> Iterator[str]:
    """Training loss rises in a healthy run too, where later models are pruned more: only with a model not better."""
    final = _entry(rounds, final_round)
    if final is not None and is_better(task, final, rounds[0]):
        return
    losses = [(entry.round_number, loss) for entry in rounds[1:] if (loss := _train_loss(entry)) is not None]
    if len(losses) < 2:
        return
    (first_round, first), (last_round, last) = losses[0], losses[-1]
    if last > first * MIN_PERPLEXITY_RATIO:
        yield (
            f"the devices' training loss rose from {first:.3g} in round {first_round} to {last:.3g} in round "
            f"{last_round}: lower --learning-rate{_now(config, 'learning_rate')}"
        )


def _better_round(task: Task, rounds: Sequence[RoundEntry], final_round: int) -> Iterator[str]:
    final = _entry(rounds, final_round)
    trained = [entry for entry in rounds[1:] if _figure(task, entry) is not None]
    if final is None or not trained:
        return
    best = min(trained, key=lambda entry: _rank(task, entry))
    if is_better(task, best, final):
        yield (
            f"round {best.round_number} was better ({_text(task, best)}) than round {final_round}, which is kept "
            f"({_text(task, final)}): --keep best keeps it"
        )


def _untrained_ratio(compact: Compact | None, config: Config) -> Iterator[str]:
    if compact is None or config.get("deploy_rounds") or not compact.pruning_ratio:
        return
    axes = axes_of(config)
    try:
        largest = max(arm.pruning_ratio for arm in axes.parse(str(config.get("arms", ""))))
    except ArmError:
        return
    if compact.pruning_ratio > largest:
        or_add = ", or add an arm of that ratio to --arms" if axes.has(PRUNING_RATIO.name) else ""
        yield (
            f"the compact model is cut by {compact.pruning_ratio:g}, which no device trained: the arms prune at most "
            f"{largest:g}; lower --sparsity{or_add}"
        )


def _unlike_whole(whole: RoundEntry | None, compact: Compact | None) -> Iterator[str]:
    """A model of which nothing was removed, measured on the sample of the rounds, is to be the one that was trained."""
    if whole is None or whole.loss is None or compact is None or compact.loss is None:
        return
    is_whole = not compact.sparsity and compact.quantization is None
    if not is_whole or compact.num_targets != whole.num_targets:
        return
    if abs(compact.loss - whole.loss) > MAX_LOSS_GAP * max(1.0, whole.loss):
        yield (
            f"nothing was removed from the compact model, but its held-out loss is {compact.loss:.4g} and that of the "
            f"whole model {whole.loss:.4g}: do not deploy it, and please report the model's architecture"
        )


def _not_finite(rounds: Sequence[RoundEntry]) -> Iterator[str]:
    counts = {entry.round_number: sum(d.not_finite or 0 for d in entry.devices) for entry in rounds}
    if total := sum(counts.values()):
        having = [entry for entry in rounds if counts[entry.round_number]]
        yield (
            f"{plural(total, 'scalar')} of {_named(having)} counted as 0, because a loss was not finite: lower "
            "--learning-rate or --zo-epsilon"
        )


def _rank(task: Task, entry: RoundEntry) -> tuple[float, float]:
    """Smaller is better: by the figure of the task, then by loss."""
    figure = _figure(task, entry) or 0.0
    return (figure if task == "causal-lm" else -figure, entry.loss or 0.0)


def _entry(rounds: Sequence[RoundEntry], number: int) -> RoundEntry | None:
    return next((entry for entry in rounds if entry.round_number == number), None)


def _figure(task: Task, entry: RoundEntry) -> float | None:
    value = getattr(entry, metric_name(task))
    return value if isinstance(value, float) else None


def _text(task: Task, entry: RoundEntry) -> str:
    value = _figure(task, entry)
    return "not measured" if value is None else metric_text(task, value)


def _train_loss(entry: RoundEntry) -> float | None:
    losses = [d.train_loss for d in entry.devices if d.train_loss is not None]
    return sum(losses) / len(losses) if losses else None


def _named(entries: Sequence[RoundEntry]) -> str:
    """The rounds in words: ``round 2``, ``rounds 1, 2 and 3``, ``rounds 1 to 9``."""
    numbers = [entry.round_number for entry in entries]
    if len(numbers) == 1:
        return f"round {numbers[0]}"
    if len(numbers) > 3 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"rounds {numbers[0]} to {numbers[-1]}"
    return f"rounds {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _now(config: Config, name: str) -> str:
    return f" (now {config[name]})" if name in config else ""
