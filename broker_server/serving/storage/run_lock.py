"""The lock on a run directory: one process of each kind may use it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from broker_server.errors import StateInUseError


@contextlib.contextmanager
def hold(run_dir: Path, owner: str = "coordinator") -> Iterator[None]:
    """Lock a run directory; the system unlocks it at any end of the process.

    Args:
        run_dir: the run.
        owner: kind of process; one of each kind may hold a run.

    Raises:
        StateInUseError: another process holds it.
    """
    with (run_dir / f".{owner}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"run directory {run_dir} is in use by another {owner}: stop that one first"
            raise StateInUseError(msg) from error
        yield
