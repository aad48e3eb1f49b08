"""``fedspine``: the server's command line. Parses, calls, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from broker_server import export_door
from broker_server.benchmark.command import bench
from broker_server.errors import ChildFailedError
from broker_server.experiments.compare.command import compare
from broker_server.experiments.run.command import run
from broker_server.versions import environment
from edge_runtime.bounds.plain import log_plainly, plain
from edge_runtime.errors import ExitCode, FedSpineError
from edge_runtime.link.address import PASSWORD_VARIABLE, read_password
from edge_runtime.system import streams
from edge_runtime.system.files import raise_if_disk_full
from edge_runtime.system.interpreter import keep_folder_out

PASSWORD_FILE_HELP = f"File with the broker's password, one line (default: the variable {PASSWORD_VARIABLE})."
PASSED_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="fedspine",
    help="Federated LoRA on pruned slices of language models. Without options, `fedspine run` shows all of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, compare):
    app.command(help=str(command.__doc__).partition("Raises:")[0])(command)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:  # noqa: FBT002 - a flag
    """Options of the program itself."""
    if version:
        print(f"fedspine {environment().get('fedspine', 'is not installed, but runs from its sources')}")
        raise typer.Exit


@app.command(context_settings=PASSED_THROUGH)
def export(context: typer.Context) -> None:
    """Turn a pretrained model into an artifact that devices can train."""
    export_door.call("export", context.args)


@app.command(context_settings=PASSED_THROUGH)
def compact(context: typer.Context) -> None:
    """Make a compact inference model from a run."""
    export_door.call("compact", context.args)


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array in place of a table.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """List the methods, with their sources and what each asks of devices."""
    from broker_server.methods import catalogue  # noqa: PLC0415 - `fedspine --help` needs none of it

    found = catalogue.entries()
    print(catalogue.as_json(found) if as_json else catalogue.as_text(found, shutil.get_terminal_size().columns))


@app.command()
def coordinate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that holds config.toml.")],
    password_file: Annotated[Path | None, typer.Option(metavar="FILE", help=PASSWORD_FILE_HELP)] = None,
) -> None:
    """Coordinate the rounds of a run. A run that was interrupted goes on where it stopped."""
    from broker_server.serving.coordinator.process import run_coordinator  # noqa: PLC0415 - `fedspine --help` needs none of it

    if password_file is not None:
        os.environ[PASSWORD_VARIABLE] = read_password(password_file)
    run_coordinator(run_dir)


@app.command()
def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory of `fedspine run` or `fedspine coordinate`.")
    ],
) -> None:
    """Write report.json and report.html of a run, also while it goes on."""
    from broker_server.experiments.run.finishing import report_again  # noqa: PLC0415 - `fedspine --help` needs none of it
    from broker_server.serving.report.schema import REPORT_PAGE  # noqa: PLC0415 - as above

    report_again(run_dir)
    print(f"report: {run_dir / REPORT_PAGE}")


@app.command()
def broker(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 1883,
    kind: Annotated[
        Literal["auto", "mosquitto", "amqtt"],
        typer.Option(help="Broker to run; auto = mosquitto if it is on the PATH, else amqtt."),
    ] = "auto",
) -> None:
    """Run an MQTT broker: mosquitto if it is installed, else amqtt."""
    from broker_server.serving.services.broker import run_broker  # noqa: PLC0415 - `fedspine --help` needs none of it

    run_broker(host=host, port=port, kind=kind)


@app.command()
def artifacts(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory of artifacts, each in a directory named by its digest.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Serve artifacts to devices over HTTP."""
    from broker_server.serving.services.artifacts import serve_artifacts  # noqa: PLC0415 - `fedspine --help` needs none of it

    serve_artifacts(directory, host, port)


def main() -> NoReturn:
    """Run the command line and end the process."""
    streams.use_utf8()
    keep_folder_out()
    streams.prepare()
    log_plainly(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command; whatever goes wrong becomes one line on stderr.

    Returns:
        The exit code; docs/exit-codes.md.
    """
    try:
        code = app(args=arguments, prog_name="fedspine", standalone_mode=False)
        streams.finish()
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except typer.TyperException as error:
        return _fail(_usage(error, arguments) or "a command is needed, see above", ExitCode.USAGE)
    except FedSpineError as error:
        return _fail(str(error), error.child_exit_code if isinstance(error, ChildFailedError) else error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last door: one line instead of a traceback
        return _fail_on_system(error) if isinstance(error, OSError) else _fail_unexpected(error)
    if code == ExitCode.INTERRUPTED:  # typer's own answer to Ctrl-C
        return _fail("interrupted", ExitCode.INTERRUPTED)
    return code if isinstance(code, int) else ExitCode.OK


def _usage(error: typer.TyperException, arguments: list[str]) -> str:
    """Return an error of the command line: the option as it was typed, its value, and the permitted values."""
    parameter = getattr(error, "param", None)
    if not isinstance(error, typer.BadParameter) or parameter is None:
        said: object = getattr(error, "message", str(error))
        return str(said if isinstance(error, typer.BadParameter) else getattr(error, "format_message", lambda: said)())
    for name in parameter.opts:
        for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
            if word == name or word.startswith(f"{name}="):
                got = following if word == name else word.removeprefix(f"{name}=")
                reason = error.message.removeprefix("Value error, ").removesuffix(".")
                return f"{name} is {got!r}: {reason[:1].lower()}{reason[1:]}"
    return error.format_message()


def _fail_on_system(error: OSError) -> int:
    try:
        raise_if_disk_full(error, Path(str(error.filename or "the run directory")))
    except FedSpineError as disk_full:
        return _fail(str(disk_full), disk_full.exit_code)
    if not error.filename or not error.strerror:
        return _fail_unexpected(error)
    if os.environ.get("FEDSPINE_DEBUG"):
        traceback.print_exception(error)
    fault = f"{error.filename}: {error.strerror}; check what is there, and who may read and write it"
    return _fail(fault, ExitCode.UNEXPECTED)


def _fail_unexpected(error: Exception) -> int:
    if isinstance(error, UnicodeEncodeError):
        return _fail(streams.explain(error), ExitCode.USAGE)
    if os.environ.get("FEDSPINE_DEBUG"):
        traceback.print_exception(error)
    hint = "set FEDSPINE_DEBUG=1 for the traceback, and please report it"
    return _fail(f"unexpected {type(error).__name__}: {error} ({hint})", ExitCode.UNEXPECTED)


def _fail(message: str, code: ExitCode) -> int:
    line = plain(" ".join(message.split()))
    print(f"fedspine: error: {line}", file=sys.stderr)
    return code
