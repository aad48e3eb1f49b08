"""``fedspine.run``: the command ``fedspine run`` as a function, with its options as keyword arguments."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from broker_server.errors import RunExistsError
from broker_server.experiments.run import command
from broker_server.experiments.run.display import QuietDisplay, make_display
from broker_server.experiments.run.job import resume_run, start_run
from broker_server.experiments.run.layout import RunDirectory, default_root
from broker_server.experiments.run.progress import render
from broker_server.experiments.run.resolve import resolve, said_of_file
from broker_server.experiments.run.resume import check_changes
from broker_server.experiments.run.settings import RunSettings
from broker_server.naming import as_key
from broker_server.options import options_of
from broker_server.serving.callbacks import Callback
from broker_server.serving.report.quality import metric_name
from broker_server.serving.report.schema import Report, decode_report
from broker_server.serving.storage.adapters import peft_directory, whole_directory
from edge_runtime.errors import FedSpineError

__all__ = ["Callback", "Curve", "RunResult", "run"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Quality of the global model over the rounds."""

    metric: str
    """``accuracy`` (share in [0, 1], higher is better) or ``perplexity`` (1 or more, lower is better)."""
    rounds: tuple[int, ...]
    """Round numbers, ascending; 0 = before training."""
    values: tuple[float, ...]
    """The metric after each of ``rounds``, on the held-out examples that are measured every round; NaN if it was
    not finite."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The result of a run."""

    directory: Path
    """The run directory (docs/architecture.md lists its files)."""
    report: Report
    """Content of ``report.json`` (docs/report.md)."""
    adapter: Path
    """The tuned adapter in PEFT's format: ``PeftModel.from_pretrained(model, result.adapter)`` loads it. If all weights
    were tuned, a whole checkpoint, which ``AutoModelForCausalLM.from_pretrained(result.adapter)`` loads."""
    compact: Path | None
    """The compact model, for :func:`fedspine.load_compact`; None if ``compact=False``."""

    @property
    def curve(self) -> Curve:
        """Quality of the global model over the rounds."""
        metric = metric_name(self.report.task)
        measured = [(entry.round_number, getattr(entry, metric)) for entry in self.report.rounds]
        return Curve(
            metric=metric,
            rounds=tuple(number for number, _ in measured),
            values=tuple(value if isinstance(value, float) else math.nan for _, value in measured),
        )

    @classmethod
    def read(cls, directory: str | Path) -> Self:
        """The result of a run that ended.

        Args:
            directory: the run directory.

        Raises:
            RunExistsError: it holds no run that ended.
            ReportError: its report is damaged, or of another version.
        """
        root = Path(directory)
        try:
            report = decode_report(RunDirectory(root).report_json.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            msg = f"{root} holds no run that ended: start one with fedspine.run({str(root)!r}), or give resume=True"
            raise RunExistsError(msg) from error
        return cls(
            directory=root,
            report=report,
            adapter=whole_directory(root) or peft_directory(root),
            compact=RunDirectory(root).compact if report.compact is not None else None,
        )


def run(
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    callbacks: str | Sequence[Callback] = "",
    **settings: object,
) -> RunResult:
    """Fine-tune a model on devices that this machine plays. The result is a compact model and a report.

    Without arguments: the small Llama that ships with the package, on the docstrings of Python's standard library. The
    broker, the coordinator and the devices are processes of their own, which end with the call. An interrupt
    (KeyboardInterrupt) ends them too; ``resume=True`` goes on from there.

    Args:
        out: run directory; None = ``fedspine-run``, or the next free name.
        config: TOML file of settings, under those that are given.
        resume: go on with the run in ``out``; of the settings, those that docs/run.md names may be given anew.
        quiet: say nothing; the lines go to the logger ``fedspine`` instead.
        callbacks: told of each round (docs/extending.md): objects, or a list of names with commas.
        **settings: options of ``fedspine run``, with underscores; ``fedspine run --help`` describes them.

    Returns:
        The result of the run.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    named, told = (callbacks, ()) if isinstance(callbacks, str) else ("", tuple(callbacks))
    given = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in {**settings, "callbacks": named or None}.items()
        if value is not None
    }
    root = default_root(Path(), resume=resume) if out is None else Path(out)
    file = None if config is None else Path(config)
    try:
        if resume:
            check_changes([*given, *(["config"] if config else [])])
        wanted = None if resume else resolve(given, file, called="config")
        with said_of_file(given, file), QuietDisplay() if quiet else make_display(sys.stdout, render) as display:
            display.step(f"run directory: {root}")
            if wanted is None:
                resume_run(root, display, given, told)
            else:
                start_run(wanted, root, display, told)
    except FedSpineError as error:
        called = as_key(error)  # names the argument as in Python, without the command's dashes
        if called is error:
            raise
        raise called from error
    return RunResult.read(root)


def _declare_settings() -> None:
    """Let help() and editors show the settings as they are declared, once, for the command."""
    parameters = inspect.signature(command.run).parameters
    types = {name: _plain(parameters[name].annotation) for name in options_of(RunSettings)}
    shown = inspect.signature(run)
    kept = [parameter for parameter in shown.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in types.items()
        if name not in shown.parameters
    ]
    setattr(run, "__signature__", shown.replace(parameters=[*kept, *settings]))  # noqa: B010 - unknown to its type


def _plain(hint: object) -> object:
    """A type without typer's annotations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


_declare_settings()
