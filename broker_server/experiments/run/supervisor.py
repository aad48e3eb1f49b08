"""The processes of a run: started tied to this one, watched, and ended together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from broker_server.errors import ChildFailedError
from broker_server.experiments.run.tether import tethered
from edge_runtime.errors import ExitCode

_ERROR_LINE = re.compile(r"fedspine[\w-]*: error: (.+)")
_LOG_TAIL_BYTES = 16_384
_POLL_S = 0.02
_PASSED_ON = frozenset(ExitCode) - {ExitCode.OK, ExitCode.UNEXPECTED, ExitCode.USAGE, ExitCode.INTERRUPTED}


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Child:
    """One process of the run."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    """File that its output goes to."""

    @property
    def returncode(self) -> int | None:
        """Return its exit status (negative: a signal), or None while it runs."""
        return self._note_end(os.WNOHANG)

    def wait(self) -> int:
        """Wait until it ends, and return its exit status."""
        return cast("int", self._note_end(0))

    def send(self, number: signal.Signals) -> None:
        """Signal it and its descendants, unless it is known to have ended: its id may be another's then."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _note_end(self, options: int) -> int | None:
        """Check whether it ended; if so, kill the rest of its group, and only then release its process id."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | options) is None:
                return None
            self.send(signal.SIGKILL)
        return self.process.wait()

    def failure(self) -> ChildFailedError:
        """The error to report for a process that ended: its own last error line, and its own exit code if specific."""
        code = self.returncode
        reason = last_error(self.log)
        if reason is None:
            reason = f"ended with signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        passed = ExitCode(code) if code in _PASSED_ON else ExitCode.RUN_FAILED
        return ChildFailedError(f"{self.name}: {reason}", passed, self.log)


def last_error(log: Path) -> str | None:
    """The last ``fedspine...: error:`` line in a log, without that prefix; None if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    found = [match[1].strip() for line in lines if (match := _ERROR_LINE.match(line))]
    return found[-1] if found else None


class Supervisor:
    """Starts processes and leaves none behind: a context manager that ends them all, last started first.

    Each process leads a group of its own, so that the terminal's Ctrl-C reaches only the supervisor, which then ends
    the groups in order; and each is tied to the supervisor by the kernel, so that even kill -9 leaves nothing running.
    """

    def __init__(self, log_directory: Path, grace_s: float = 5.0) -> None:
        self._logs = log_directory
        self._grace_s = grace_s
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._children[::-1])

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process; its output is appended to ``<name>.log``.

        Args:
            name: for people; also the log's name.
            command: program and arguments.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name=name, process=process, log=log)
        self._children.append(child)
        return child

    def finish(self, child: Child) -> None:
        """Wait for the good end of a process.

        Raises:
            ChildFailedError: it ended otherwise.
        """
        code = child.wait()
        self._children.remove(child)
        if code != 0:
            raise child.failure()

    def stop(self, children: Sequence[Child]) -> None:
        """End processes and whatever they started: asked first, killed when they have not ended in the grace time."""
        chosen = list(children)
        for child in chosen:
            child.send(signal.SIGTERM)
        give_up_at = time.monotonic() + self._grace_s
        while any(child.returncode is None for child in chosen) and time.monotonic() < give_up_at:
            time.sleep(_POLL_S)
        for child in chosen:
            child.send(signal.SIGKILL)
            child.wait()
        self._children = [child for child in self._children if child not in chosen]
