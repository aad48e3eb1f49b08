"""The door to the exporter: torch and other packages are imported only when a command of the exporter is called."""

from __future__ import annotations

from collections.abc import Sequence

from broker_server.errors import MissingExtraError
from edge_runtime.system.interpreter import missing, module_command


def call(command: str, arguments: Sequence[str]) -> None:
    """Call a command of the exporter's command line (``export``, ``compact``).

    Raises:
        MissingExtraError: torch or another package of the server is not installed.
        FedSpineError: the command failed.
    """
    try:
        from exporter.cli import app  # noqa: PLC0415 - torch is imported here, and only here
    except ModuleNotFoundError as error:
        raise MissingExtraError(missing(error, command)) from error
    app(args=[command, *arguments], prog_name="fedspine", standalone_mode=False)


def process(module: str) -> list[str]:
    """Command line that runs a module of the exporter's benchmark in a process of its own."""
    return module_command(f"exporter.benchmark.{module}")
