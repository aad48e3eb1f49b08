"""``fedspine run``: its options are the fields of the settings; one that is not given leaves it to a file."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from broker_server.errors import InterruptedRunError
from broker_server.experiments.run.layout import RunDirectory, default_root
from broker_server.experiments.run.resolve import resolve, said_of_file
from broker_server.experiments.run.settings import RunSettings
from broker_server.naming import option_name
from broker_server.options import Panel, options_of, renamed
from edge_runtime.link.address import PASSWORD_VARIABLE, read_password

_OWN = {
    "out": Annotated[
        Path | None,
        typer.Option(
            help="run directory (default: fedspine-run, or the next free name).", rich_help_panel=Panel.RESULT
        ),
    ],
    "resume": Annotated[
        bool | None,
        typer.Option(
            "--resume",
            help="go on with the run in --out. With more --rounds, a run that ended goes on too.",
            rich_help_panel=Panel.RESULT,
        ),
    ],
    "config": Annotated[
        Path | None,
        typer.Option(
            help="TOML file of these options, written with underscores, as in run.toml.", rich_help_panel=Panel.RESULT
        ),
    ],
    "password_file": Annotated[
        Path | None,
        typer.Option(
            help=f"file with the password of --broker, one line (default: the variable {PASSWORD_VARIABLE}).",
            rich_help_panel=Panel.PROCESSES,
        ),
    ],
}
"""Options that are not settings."""


def run(**options: object) -> None:
    """Fine-tune a model on devices that this machine plays. The result is a compact model and a report.

    Without options, it tunes the small Llama in the package on the docstrings of Python's standard library.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    given = _renamed({name: value for name, value in options.items() if value is not None})
    resume = bool(given.pop("resume", None))
    out, config = (Path(str(value)) if (value := given.pop(name, None)) else None for name in ("out", "config"))
    if (password_file := given.pop("password_file", None)) is not None:
        os.environ[PASSWORD_VARIABLE] = read_password(Path(str(password_file)))
    if resume:
        _check_resumed([*given, *(["config"] if config else [])])
    settings = None if resume else resolve(given, config)
    with said_of_file(given, config):
        _execute(settings, given, out or default_root(Path(), resume=resume))


def _renamed(given: Mapping[str, object]) -> dict[str, object]:
    """The options under the names that they have now, with a line for each that had another."""
    now = renamed(given, RunSettings)
    for old, new in zip(given, now, strict=True):
        if old != new:
            sys.stderr.write(f"fedspine: note: {option_name(old)} is called {option_name(new)} now\n")
    return now


def _check_resumed(given: list[str]) -> None:
    if given:
        from broker_server.experiments.run.resume import check_changes  # noqa: PLC0415 - as below

        check_changes(given)


def _execute(settings: RunSettings | None, changes: Mapping[str, object], root: Path) -> None:
    # Imported here, so that `fedspine --help` needs none of it.
    from broker_server.experiments.run.display import make_display  # noqa: PLC0415
    from broker_server.experiments.run.finishing import summary_lines  # noqa: PLC0415
    from broker_server.experiments.run.job import resume_run, start_run  # noqa: PLC0415
    from broker_server.experiments.run.progress import render  # noqa: PLC0415

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with make_display(sys.stdout, render) as display:
            display.step(f"run directory: {root}")
            report = resume_run(root, display, changes) if settings is None else start_run(settings, root, display)
    except KeyboardInterrupt as error:
        left = RunDirectory(root).job_file.exists()
        then = f"go on with `fedspine run --resume --out {root}`" if left else "nothing was left behind"
        msg = f"interrupted; all processes ended, {then}"
        raise InterruptedRunError(msg) from error
    sys.stdout.write("\n".join(["", *summary_lines(report, root), ""]))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Let a signal end a run as Ctrl-C does, also where a shell started it with that ignored."""
    raise KeyboardInterrupt


def _option_types() -> dict[str, object]:
    types: dict[str, object] = {}
    for name, one in options_of(RunSettings).items():
        kind = one.kind.__origin__ if typing.get_origin(one.kind) is Annotated else one.kind
        kind = str if typing.get_origin(kind) is typing.Literal else kind
        types[name] = Annotated[kind | None, typer.Option(help=one.help, rich_help_panel=one.panel)]
        if one.formerly:
            types[one.formerly] = Annotated[kind | None, typer.Option(hidden=True)]
    return types


def _declare_options() -> None:
    """Give :func:`run` the signature that typer reads: all options, none of them needed."""
    types = _option_types() | _OWN
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in types.items()
    ]
    run.__annotations__ = {**types, "return": None}
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - unknown to the type of a function


_declare_options()
