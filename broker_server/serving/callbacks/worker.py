"""The thread that calls callbacks, so that slow or failing callbacks do not affect the run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from broker_server.serving.callbacks.base import Callback, RunInfo
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.events import AnyEvent, RoundFinished
from broker_server.serving.storage.records import RoundRecord

CLOSE_S: Final = 60.0
"""Time that callbacks have to finish after the run is over."""


class CallbackWorker:
    """Calls callbacks one after the other in a thread; without callbacks no thread is started.

    A context: leaving it waits at most ``close_s`` for calls that are still to be made.
    """

    def __init__(self, callbacks: Sequence[Callback], say: Callable[[str], None], *, close_s: float = CLOSE_S) -> None:
        """Prepare.

        Args:
            callbacks: in the order in which they are called.
            say: takes a line of text; called in the thread of the callbacks.
            close_s: seconds.
        """
        self._callbacks = tuple(callbacks)
        self._say = say
        self._close_s = close_s
        self._calls: queue.SimpleQueue[Callable[[Callback], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="callbacks", daemon=True)

    def __enter__(self) -> Self:
        if self._callbacks:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._callbacks:
            return
        self._calls.put(lambda callback: callback.close())
        self._calls.put(None)
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._say(f"callbacks are not done {self._close_s:.0f} s after the run: what they have yet to do is lost")

    def run_started(self, run: RunInfo) -> None:
        """See :meth:`Callback.on_run_start`."""
        self._calls.put(lambda callback: callback.on_run_start(run))

    def happened(self, event: AnyEvent) -> None:
        """Take an event of the event log; the end of a round leads to :meth:`Callback.on_round_end`."""
        if isinstance(event, RoundFinished):
            self._round_finished(event.record)

    def run_finished(self, report: Report | None) -> None:
        """See :meth:`Callback.on_run_end`."""
        self._calls.put(lambda callback: callback.on_run_end(report))

    def _round_finished(self, record: RoundRecord) -> None:
        self._calls.put(lambda callback: callback.on_round_end(record))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            for callback in self._callbacks:
                try:
                    call(callback)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - of somebody else's code, whatever it is
                    name = type(callback).__name__
                    self._say(f"callback {name} failed; the run goes on ({type(error).__name__}: {error})")
