"""One piece of work at a time, in a thread, so that the device goes on talking while it trains."""

from __future__ import annotations

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
Outcome = tuple[object, Result | Exception]
"""The job's tag, and what it returned or raised."""


class Background(Generic[Result]):
    """Runs jobs, one at a time.

    Attributes:
        outcomes: how jobs ended; the owner polls it. Nothing comes of a job that another one has replaced.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.outcomes: queue.SimpleQueue[Outcome[Result]] = queue.SimpleQueue()
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._abandoned: list[threading.Thread] = []
        self._stop = threading.Event()
        self._stopped_at: float | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job runs, and was not asked to end :data:`ABANDON_S` ago."""
        if self._thread is None or not self._thread.is_alive():
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
        if self._thread is not None and self._thread.is_alive():
            logger.warning("work did not end within %g s after it was told to; it is left alone", ABANDON_S)
            self._abandoned.append(self._thread)
        self._stop = stop = threading.Event()
        self._stopped_at = None

        def run() -> None:
            result: Result | Exception
            try:
                result = job(stop)
            except Exception as error:  # noqa: BLE001 - handed to the owner, who decides
                result = error
            if self._stop is stop:
                self.outcomes.put((tag, result))

        self._thread = threading.Thread(target=run, name="work", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the job to stop; how it ended appears in :attr:`outcomes` all the same."""
        self._stop.set()
        if self._stopped_at is None:
            self._stopped_at = self._clock()

    def join(self, timeout_s: float) -> bool:
        """Wait for the job; whether none runs any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()
