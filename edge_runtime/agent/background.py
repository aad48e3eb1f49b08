"""One piece of work at a time, in a thread, so that the device goes on talking while it trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
Outcome = tuple[object, Result | Exception]
"""The job's tag, and what it returned or raised."""


class Background(Generic[Result]):
    """Runs jobs, one at a time.

    Attributes:
        outcomes: how jobs ended; the owner polls it.
    """

    def __init__(self) -> None:
        self.outcomes: queue.SimpleQueue[Outcome[Result]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether a job runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, tag: object, job: Callable[[threading.Event], Result]) -> None:
        """Run ``job``; it is handed an event that is set when it should stop.

        Raises:
            RuntimeError: a job runs already.
        """
        if self.is_busy:
            msg = "a job runs already"
            raise RuntimeError(msg)
        self._stop = stop = threading.Event()

        def run() -> None:
            result: Result | Exception
            try:
                result = job(stop)
            except Exception as error:  # noqa: BLE001 - handed to the owner, who decides
                result = error
            self.outcomes.put((tag, result))

        self._thread = threading.Thread(target=run, name="work", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the job to stop; how it ended appears in :attr:`outcomes` all the same."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the job; whether none runs any more."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.is_busy
