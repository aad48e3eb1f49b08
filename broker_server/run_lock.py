"""One coordinator for one run directory."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from broker_server.errors import StateInUseError

LOCK_FILE = ".coordinator.lock"


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold a run directory; the system lets go of it when the process ends, however it ends.

    Raises:
        StateInUseError: another process holds it.
    """
    with (run_dir / LOCK_FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"run directory {run_dir} is in use by another coordinator: stop that one first"
            raise StateInUseError(msg) from error
        yield
