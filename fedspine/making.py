"""Artifacts and compact models: the exporter's functions, which tell each step on stderr unless told where else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from broker_server.experiments.run.preparation import model_source
from exporter.artifact.export import export_model
from exporter.cli import say
from exporter.compact.export import compact_run

__all__ = ["SMALL_LLAMA", "compact", "export"]

SMALL_LLAMA: Final = model_source("")
"""Directory of the pretrained Llama that ships with the package (causal-lm)."""

P = ParamSpec("P")
R = TypeVar("R")


def _with_progress(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its lines of progress on stderr, where no ``progress`` is given."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("progress", say)
        return function(*args, **kwargs)

    return call


export: Final = _with_progress(export_model)
compact: Final = _with_progress(compact_run)
