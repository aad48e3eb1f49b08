"""One job at a time beside the event loop, which must go on answering devices meanwhile."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


class Background(Generic[Result]):
    """Runs jobs in a daemon thread: a process that ends does not wait for it, so jobs leave nothing half-written."""

    def __init__(self) -> None:
        self._done: queue.SimpleQueue[Result | _Failed] = queue.SimpleQueue()
        self.is_busy = False

    def start(self, job: Callable[[], Result]) -> None:
        """Start a job; there must be none under way."""
        if self.is_busy:
            msg = "a job is under way already"
            raise RuntimeError(msg)
        self.is_busy = True
        threading.Thread(target=self._run, args=(job,), daemon=True, name="background").start()

    def poll(self) -> Result | None:
        """What a finished job returned, once; None while there is nothing new. Raises what the job raised."""
        try:
            result = self._done.get_nowait()
        except queue.Empty:
            return None
        self.is_busy = False
        if isinstance(result, _Failed):
            raise result.error
        return result

    def _run(self, job: Callable[[], Result]) -> None:
        try:
            self._done.put(job())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._done.put(_Failed(error))
