"""What assignments start from: made of what is here, where a method can, or pulled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Final

from edge_runtime.agent.work import Work, may_rebuild
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire.messages import BlobRef

COORDINATOR: Final = "coordinator"
"""The only peer of a device."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """How an attempt to do without pulling ended."""

    blob: bytes | None
    """None = it must be pulled."""


class Payloads:
    """The payloads of one device.

    Attributes:
        rate: how fast the last one was pulled, bytes a second; None = none was.

    Args:
        transfers: where they are pulled.
        clock: monotonic seconds.
        on_failed: told of work whose payload cannot be had, and why.
    """

    def __init__(
        self, transfers: Transfers, clock: Callable[[], float], on_failed: Callable[[Work, str], None]
    ) -> None:
        self.rate: float | None = None
        self._transfers = transfers
        self._clock = clock
        self._on_failed = on_failed

    def ask(self, work: Work) -> None:
        """See to it that the payload of some work comes, if it starts from anything."""
        work.asked_at = self._clock()
        payload = work.assignment.payload
        if payload is None:
            work.payload = (b"", 0.0)
        elif may_rebuild(work.assignment.work):
            work.is_to_rebuild = True
        else:
            self._pull(work, payload)

    def rebuilt(self, work: Work, outcome: Rebuilt) -> None:
        """Take what was made of what is here, or pull."""
        work.is_running = work.is_to_rebuild = False
        if outcome.blob is not None:
            work.payload = (outcome.blob, self._clock() - work.asked_at)
        elif work.assignment.payload is not None:
            self._pull(work, work.assignment.payload)

    def stop(self, work: Work) -> None:
        """Pull no more for some work."""
        if work.assignment.payload is not None:
            self._transfers.cancel(work.assignment.payload.digest, COORDINATOR)

    def _pull(self, work: Work, payload: BlobRef) -> None:
        began = self._clock()

        def on_complete(blob: bytes) -> None:
            now = self._clock()
            self.rate = len(blob) / max(now - began, 1e-3)
            work.payload = (blob, now - work.asked_at)

        self._transfers.expect(payload, COORDINATOR, on_complete, functools.partial(self._on_failed, work))
