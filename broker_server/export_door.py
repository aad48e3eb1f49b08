"""The one door to the exporter: torch and its company are imported only when one of its commands is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from broker_server.errors import MissingExtraError


def call(command: str, arguments: Sequence[str]) -> None:
    """Call a command of the exporter's command line (``export``, ``compact``).

    Raises:
        MissingExtraError: torch or another package of the server is not installed.
        FedSpineError: what the command raises.
    """
    try:
        from exporter.cli import app  # noqa: PLC0415 - torch is imported here, and only here
    except ModuleNotFoundError as error:
        msg = f"{command} needs the package {error.name!r}: install the server, pip install 'fedspine[server]'"
        raise MissingExtraError(msg) from error
    app(args=[command, *arguments], prog_name="fedspine", standalone_mode=False)


def process(module: str) -> list[str]:
    """Command line that runs a module of the exporter in a process of its own."""
    return [sys.executable, "-m", f"exporter.{module}"]
