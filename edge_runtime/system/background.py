"""One job at a time in a background thread, so that the process can answer messages meanwhile."""

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
"""Time that a job has to end after it was told to stop, seconds; then another job may start beside it."""

MAX_ABANDONED: Final = 4
"""Most threads of jobs that did not end in time; at this number no job starts before one of them ends."""

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class Ended(Generic[Result]):
    """The end of a job."""

    tag: object
    """Value that the job was started with."""
    outcome: Result | BaseException
    """Value that the job returned, or the exception that it raised."""

    def result(self) -> Result:
        """Return the job's value, or raise its exception."""
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Background(Generic[Result]):
    """Runs jobs, one at a time, in daemon threads. A process does not wait for them, so they must write atomically.

    One thread owns this object; it starts jobs and polls for their end.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: queue.SimpleQueue[tuple[threading.Event, Ended[Result]]] = queue.SimpleQueue()
        """Ends of jobs, each with the job's event, which distinguishes replaced jobs from the current one."""
        self._thread: threading.Thread | None = None
        self._abandoned: list[threading.Thread] = []
        self._stop = threading.Event()
        self._stopped_at: float | None = None
        self._is_awaited = False
        """Whether the end of the current job was not polled yet."""

    @property
    def is_busy(self) -> bool:
        """Return whether no job can start: a job's end was not polled yet, unless it overran :data:`ABANDON_S`."""
        if not self._is_awaited:
            return False
        is_overdue = self._stopped_at is not None and self._clock() - self._stopped_at >= ABANDON_S
        return not is_overdue or sum(thread.is_alive() for thread in self._abandoned) >= MAX_ABANDONED

    def start(self, tag: object, job: Callable[[threading.Event], Result]) -> None:
        """Run ``job``; its argument is an event that is set when the job should stop.

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
        """Return the end of the job once; None if it has not ended. Ends of replaced jobs are ignored."""
        while True:
            try:
                stop, ended = self._ended.get_nowait()
            except queue.Empty:
                return None
            if stop is self._stop:
                self._is_awaited = False
                return ended

    def stop(self) -> None:
        """Tell the job to stop; its end can still be polled."""
        self._stop.set()
        if self._stopped_at is None:
            self._stopped_at = self._clock()

    def join(self, timeout_s: float) -> bool:
        """Wait for the job for at most ``timeout_s`` seconds; return whether no job runs any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()
