"""One piece of work at a time, in a thread, so that its process goes on talking meanwhile."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

logger = logging.getLogger(__name__)

ABANDON_S: Final = 30.0
"""Time that a job has to end after it was asked to, seconds; then another one may begin beside it."""

MAX_ABANDONED: Final = 4
"""Threads of jobs that did not end when they were asked to, at most; then none begins before one of them ends."""

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Ended(Generic[Result]):
    """The end of a job."""

    tag: object
    """Value that it was started with."""
    outcome: Result | BaseException
    """Value that it returned, or the exception that it raised."""

    def result(self) -> Result:
        """Return the job's value, or raise its exception."""
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Background(Generic[Result]):
    """Runs jobs, one at a time, in daemon threads: a process ends without them, so they leave nothing half-written.

    Belongs to one thread, which starts jobs and polls for how they ended.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: queue.SimpleQueue[tuple[threading.Event, Ended[Result]]] = queue.SimpleQueue()
        """With each job's event, which tells it from the job that replaced it."""
        self._thread: threading.Thread | None = None
        self._abandoned: list[threading.Thread] = []
        self._stop = threading.Event()
        self._stopped_at: float | None = None
        self._is_awaited = False
        """Whether a job was started whose end was not polled yet."""

    @property
    def is_busy(self) -> bool:
        """Return whether a job's end is yet to be polled, and it was not asked to end :data:`ABANDON_S` ago."""
        if not self._is_awaited:
            return False
        is_overdue = self._stopped_at is not None and self._clock() - self._stopped_at >= ABANDON_S
        return not is_overdue or sum(thread.is_alive() for thread in self._abandoned) >= MAX_ABANDONED

    def start(self, tag: object, job: Callable[[threading.Event], Result]) -> None:
        """Run ``job``; it is handed an event that is set when it should stop.

        Raises:
            RuntimeError: a job runs already.
        """
        if self.is_busy:
            msg = "a job runs already"
            raise RuntimeError(msg)
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if self._is_awaited and self._thread is not None and self._thread.is_alive():
            logger.warning("work did not end within %g s after it was told to; it is left alone", ABANDON_S)
            self._abandoned.append(self._thread)
        self._stop = stop = threading.Event()
        self._stopped_at = None
        self._is_awaited = True

        def run() -> None:
            outcome: Result | BaseException
            try:
                outcome = job(stop)
            except BaseException as error:  # noqa: BLE001 - handed to the owner, who decides
                outcome = error
            self._ended.put((stop, Ended(tag, outcome)))

        self._thread = threading.Thread(target=run, name="background", daemon=True)
        self._thread.start()

    def poll(self) -> Ended[Result] | None:
        """Return the end of a job, once; None while there is none. A job that was replaced is ignored."""
        while True:
            try:
                stop, ended = self._ended.get_nowait()
            except queue.Empty:
                return None
            if stop is self._stop:
                self._is_awaited = False
                return ended

    def stop(self) -> None:
        """Ask the job to stop; how it ended can be polled all the same."""
        self._stop.set()
        if self._stopped_at is None:
            self._stopped_at = self._clock()

    def join(self, timeout_s: float) -> bool:
        """Wait for the job; whether none runs any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()
