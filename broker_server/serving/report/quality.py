"""The figure of a model's quality: accuracy for classification, perplexity for language modelling."""

from __future__ import annotations

import math

from edge_runtime.formats.manifest import Task

MAX_LOSS = 700.0
"""Losses beyond this (nats) would overflow; a model that far off is useless anyway."""


def perplexity(loss: float) -> float:
    """Exp of a mean negative log-likelihood (nats), at least 1."""
    return math.exp(min(max(loss, 0.0), MAX_LOSS))


def metric_name(task: Task) -> str:
    """``accuracy`` or ``perplexity``."""
    return "perplexity" if task == "causal-lm" else "accuracy"


def metric(task: Task, loss: float, accuracy: float) -> float:
    """Value of :func:`metric_name`."""
    return perplexity(loss) if task == "causal-lm" else accuracy


def metric_text(task: Task, value: float) -> str:
    """A value for people.

    >>> metric_text("causal-lm", 71.234), metric_text("text-classification", 0.8712)
    ('71.2', '87.1 %')
    """
    return f"{value:.1f}" if task == "causal-lm" else f"{100 * value:.1f} %"


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "round"), plural(3, "round")
    ('1 round', '3 rounds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """A duration for people.

    >>> duration_text(7.2), duration_text(186.7)
    ('7.2 s', '3 min 07 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s"


def bytes_text(count: float) -> str:
    """A size for people, in powers of ten.

    >>> bytes_text(512), bytes_text(22_700_000)
    ('512 B', '22.7 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
