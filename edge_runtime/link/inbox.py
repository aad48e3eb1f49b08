"""Messages that wait for the owner of a link. The network thread adds them and never waits for the owner.

A message is acknowledged when it has a place in the inbox. Without a place it is set aside and not acknowledged. The
broker sends only a limited number of unacknowledged messages (MQTT 5: Receive Maximum), keeps the others, and sends
them when the owner has made room. So pings go on while the owner is busy, and memory is bounded.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 32 * 1024 * 1024
"""Most bytes of messages that wait for the owner of a link, overhead of each message included."""

MAX_ASIDE_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of messages set aside without acknowledgement, overhead included; further messages are dropped.
More than MQTT 5's Receive Maximum allows: mosquitto 2.0 exceeds that, and MQTT 3.1.1 does not have it."""

EVENT_BYTES: Final = 500
"""Memory of a message beside topic and payload, about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Connected:
    """Connected and subscribed; unanswered messages may be repeated now."""

    protocol: str
    """``MQTT 5`` or ``MQTT 3.1.1``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended; the link tries to reconnect."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """A message arrived; only its size was checked."""

    topic: str
    payload: bytes


LinkEvent = Connected | Disconnected | Received


class Inbox:
    """Events in the order in which they happened; for any number of threads.

    Attributes:
        num_dropped: messages without a place that the broker could not keep either.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_aside_bytes: int = MAX_ASIDE_BYTES) -> None:
        """Make an empty inbox.

        Args:
            max_bytes: most bytes of messages that wait for the owner.
            max_aside_bytes: most bytes of messages that wait for a place, not acknowledged.
        """
        self.num_dropped = 0
        self._max_bytes = max_bytes
        self._max_aside_bytes = max_aside_bytes
        self._events: collections.deque[LinkEvent] = collections.deque()
        self._num_bytes = 0
        self._num_aside_bytes = 0
        self._aside: collections.deque[tuple[Received, Callable[[], None]]] = collections.deque()
        self._is_full = False
        """Whether a full inbox was logged; False again once the owner has read all events."""
        self._changed = threading.Condition()

    def note(self, event: Connected | Disconnected) -> None:
        """Add a change of the connection; with a lost connection its messages without a place are dropped.

        Changes that the owner has not read are merged to one event, so their number does not grow.
        """
        with self._changed:
            if isinstance(event, Disconnected):
                self._aside.clear()
                self._num_aside_bytes = 0
                last = [type(self._events[index]) for index in (-2, -1)] if len(self._events) > 1 else []
                if last == [Disconnected, Connected]:
                    self._events.pop()
                    self._events.pop()
            self._events.append(event)
            self._changed.notify()

    def deliver(self, event: Received, acknowledge: Callable[[], None] | None) -> None:
        """Take a message, now or when there is room.

        Args:
            event: the message.
            acknowledge: acknowledges the message to the broker; None for QoS 0.
        """
        with self._changed:
            if self._has_room(event):
                self._is_full = self._is_full and bool(self._events)
                self._append(event)
            elif acknowledge is not None and self._num_aside_bytes + _size(event) <= self._max_aside_bytes:
                if not self._is_full:
                    self._is_full = True
                    logger.warning("%d messages wait to be read: the broker keeps the next ones", len(self._events))
                self._aside.append((event, acknowledge))
                self._num_aside_bytes += _size(event)
                return
            else:
                self.num_dropped += 1
        if acknowledge is not None:
            acknowledge()

    def get(self, timeout: float | None = None) -> LinkEvent:
        """The oldest event; waits for one.

        Args:
            timeout: longest wait, seconds; None = for ever.

        Raises:
            queue.Empty: there was no event in this time.
        """
        taken = []
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._events), timeout):
                raise queue.Empty
            event = self._events.popleft()
            if isinstance(event, Received):
                self._num_bytes -= _size(event)
            while self._aside and self._fits(self._aside[0][0]):
                waiting, acknowledge = self._aside.popleft()
                self._num_aside_bytes -= _size(waiting)
                self._append(waiting)
                taken.append(acknowledge)
        for acknowledge in taken:
            acknowledge()
        return event

    def get_nowait(self) -> LinkEvent:
        """The oldest event.

        Raises:
            queue.Empty: there is no event.
        """
        return self.get(0)

    def qsize(self) -> int:
        """Number of events that wait for the owner."""
        return len(self._events)

    def _has_room(self, event: Received) -> bool:
        return not self._aside and self._fits(event)

    def _fits(self, event: Received) -> bool:
        return not self._num_bytes or self._num_bytes + _size(event) <= self._max_bytes

    def _append(self, event: Received) -> None:
        self._num_bytes += _size(event)
        self._events.append(event)
        self._changed.notify()


def _size(event: Received) -> int:
    return len(event.payload) + len(event.topic) + EVENT_BYTES
