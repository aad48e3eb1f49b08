"""A broker inside one process: its links behave as links over MQTT, without sockets and threads.

A message is delivered in the thread that publishes it. So thousands of devices and their coordinator fit into one
process. The broker uses no clock: a simulator decides when a connection breaks and when it is restored.

It behaves as an MQTT broker. Order is kept from one publisher to one subscriber. A limited number of messages is under
way to a subscriber without acknowledgement; the broker keeps further messages, and drops those beyond its limit.
Messages under way are lost with their connection. The last will is published when a connection ends without a good-bye.
"""

from __future__ import annotations

import collections
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from edge_runtime.errors import MessageError
from edge_runtime.link.connection import RECEIVE_MAXIMUM
from edge_runtime.link.counting import CountingLink
from edge_runtime.link.errors import BrokerUnreachableError
from edge_runtime.link.inbox import Connected, Disconnected
from edge_runtime.link.reflex import Reflex

MAX_QUEUED_MESSAGES: Final = 20_000
"""Most messages that the broker keeps for one link without acknowledgement; further messages are dropped."""

PROTOCOL: Final = "in-process"
"""Name of the protocol in :class:`~edge_runtime.link.inbox.Connected`."""


class InProcessBroker:
    """Routes messages between the links of this process; for any number of threads.

    Attributes:
        num_dropped: messages that did not fit into a link's queue.
    """

    def __init__(self, max_queued_messages: int = MAX_QUEUED_MESSAGES) -> None:
        """Start a broker without links.

        Args:
            max_queued_messages: most messages that are kept for one link.
        """
        self.max_queued_messages = max_queued_messages
        self.num_dropped = 0
        self._lock = threading.Lock()
        self._filters = _Level()
        self._links: dict[str, InProcessLink] = {}
        self._waiting: list[InProcessLink] = []
        """Links that connect when the broker starts (again)."""
        self._is_up = True

    def open_link(
        self,
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes] | None,
        max_message_bytes: int,
        optional_subscriptions: Sequence[str] = (),
        reflex: Reflex | None = None,
        rng: random.Random | None = None,
        on_event: Callable[[], None] = lambda: None,
    ) -> InProcessLink:
        """Prepare a link, see :class:`~edge_runtime.link.protocol.OpenLink`.

        Args:
            client_id: a second link with the same id throws out the first, which stays out until it is restored.
            subscriptions: topic filters; ``+`` and ``#`` are as in MQTT.
            will: topic and payload that the broker publishes when the connection breaks.
            max_message_bytes: largest payload that is published or accepted.
            optional_subscriptions: further topic filters; none is refused here.
            reflex: greeting and answer that the link sends without its owner.
            rng: not used, because no attempt to connect has to wait.
            on_event: called after each event, in the thread that caused it, so that one thread can serve many links;
                it must not wait.

        Raises:
            MessageError: ``#`` is not the last level of a filter.
        """
        del rng
        filters = (*subscriptions, *optional_subscriptions, *([] if reflex is None else [reflex.topic]))
        for one in filters:
            if "#" in one.split("/")[:-1]:
                msg = f"topic filter {one!r} is not allowed: '#' must be its last level"
                raise MessageError(msg)
        return InProcessLink(self, client_id, filters, will, max_message_bytes, reflex, on_event)

    def stop(self) -> None:
        """End every connection without last wills, like a killed broker."""
        with self._lock:
            self._is_up = False
            self._waiting, self._links = list(self._links.values()), {}
            self._filters = _Level()
        for link in self._waiting:
            link.end("the broker stopped")

    def start(self) -> None:
        """Start again: links disconnected by :meth:`stop`, and links that wait for a broker, connect."""
        with self._lock:
            self._is_up = True
            waiting, self._waiting = self._waiting, []
        for link in waiting:
            link.restore()

    def attach(self, link: InProcessLink, *, is_patient: bool) -> bool:
        """Connect a link; False if the broker is stopped and the link has to wait.

        Raises:
            BrokerUnreachableError: the broker is stopped, and the link is not patient.
        """
        with self._lock:
            if not self._is_up:
                if not is_patient:
                    msg = "the in-process broker is stopped: start it"
                    raise BrokerUnreachableError(msg)
                if link not in self._waiting:
                    self._waiting.append(link)
                return False
            before = self._links.get(link.client_id)
            self._links[link.client_id] = link
            if before is not None:
                self._filters.remove(before)
            self._filters.add(link)
        if before is not None:
            before.end("another client took over this name")
            before.publish_will()
        return True

    def detach(self, link: InProcessLink) -> bool:
        """Disconnect a link; False if it is not connected."""
        with self._lock:
            if link in self._waiting:
                self._waiting.remove(link)
            if self._links.get(link.client_id) is not link:
                return False
            del self._links[link.client_id]
            self._filters.remove(link)
        return True

    def is_attached(self, link: InProcessLink) -> bool:
        """Return whether a link is connected."""
        return self._links.get(link.client_id) is link

    def route(self, topic: str, payload: bytes) -> None:
        """Deliver a message to every link that subscribes to its topic."""
        with self._lock:
            receivers = list(dict.fromkeys(self._filters.matching(topic.split("/"))))
        for link in receivers:
            link.take(topic, payload)

    def count_drop(self) -> None:
        """Count a dropped message."""
        with self._lock:
            self.num_dropped += 1


class InProcessLink(CountingLink):
    """A link to an :class:`InProcessBroker`. Make it with :meth:`InProcessBroker.open_link`."""

    def __init__(
        self,
        broker: InProcessBroker,
        client_id: str,
        filters: tuple[str, ...],
        will: tuple[str, bytes] | None,
        max_message_bytes: int,
        reflex: Reflex | None,
        on_event: Callable[[], None],
    ) -> None:
        super().__init__(max_message_bytes, reflex)
        self.client_id = client_id
        self.filters = filters
        self._broker = broker
        self._will = will
        self._on_event = on_event
        self._is_closed = False
        self._queue_lock = threading.Lock()
        self._queued: collections.deque[tuple[str, bytes]] = collections.deque()
        """Messages that the broker keeps for this link."""
        self._num_under_way = 0
        self._is_handing_over = False
        self._connection = 0
        """Number of the connection; acknowledgements of earlier connections are ignored."""

    @property
    def is_connected(self) -> bool:
        """Return whether a message published now would reach the broker."""
        return self._broker.is_attached(self)

    @property
    def is_all_confirmed(self) -> bool:
        """Return whether the broker has acknowledged every message; it acknowledges at once."""
        return self.is_connected

    @property
    def has_room(self) -> bool:
        """Return whether there is a connection; messages to the broker are never under way."""
        return self.is_connected

    def connect(self, *, wait_for_broker: bool = False) -> None:
        """Connect for the first time.

        Args:
            wait_for_broker: return when the broker is stopped, and connect when it starts, instead of raising.

        Raises:
            BrokerUnreachableError: the broker is stopped (not with ``wait_for_broker``).
        """
        self._connect(is_patient=wait_for_broker)

    def break_connection(self, reason: str = "closed by the other side without a reason") -> None:
        """End the connection as a network fault does; the last will is published. :meth:`restore` connects again."""
        if self._broker.detach(self):
            self.end(reason)
            self.publish_will()

    def restore(self) -> None:
        """Connect again after a connection ended; does nothing if it is open or was closed."""
        if not self._is_closed and not self.is_connected:
            self._connect(is_patient=True)

    def close(self, goodbye: tuple[str, bytes] | None = None) -> None:
        """Publish a last message, disconnect cleanly (no last will is published), and stop for good."""
        self._is_closed = True
        if goodbye is not None:
            self._send(*goodbye)
        self._broker.detach(self)
        self._drop_queued()

    def end(self, reason: str) -> None:
        """Note that the broker ended the connection: messages under way are lost."""
        self._drop_queued()
        self.events.note(Disconnected(reason))
        self._on_event()

    def publish_will(self) -> None:
        """Publish the last will, on behalf of the broker."""
        if self._will is not None:
            self._broker.route(*self._will)

    def take(self, topic: str, payload: bytes) -> None:
        """Take a message from the broker, now or after earlier messages are acknowledged."""
        with self._queue_lock:
            if len(self._queued) >= self._broker.max_queued_messages:
                self._broker.count_drop()
                return
            self._queued.append((topic, payload))
            if self._is_handing_over:
                return
            self._is_handing_over = True
        self._hand_over()

    def _connect(self, *, is_patient: bool) -> None:
        if not self._broker.attach(self, is_patient=is_patient):
            return
        if self._reflex is not None:
            self.publish(self._reflex.topic, self._reflex.greet())
        self.events.note(Connected(PROTOCOL))
        self._on_event()

    def _send(self, topic: str, payload: bytes) -> bool:
        if not self.is_connected:
            return False
        self._broker.route(topic, payload)
        return True

    def _drop_queued(self) -> None:
        with self._queue_lock:
            self._queued.clear()
            self._num_under_way = 0
            self._connection += 1

    def _hand_over(self) -> None:
        while True:
            with self._queue_lock:
                if not self._queued or self._num_under_way >= RECEIVE_MAXIMUM:
                    self._is_handing_over = False
                    return
                topic, payload = self._queued.popleft()
                self._num_under_way += 1
                connection = self._connection
            self._receive(topic, payload, functools.partial(self._acknowledge, connection))
            self._on_event()

    def _acknowledge(self, connection: int) -> None:
        with self._queue_lock:
            if connection != self._connection:
                return
            self._num_under_way -= 1
            if self._is_handing_over or not self._queued:
                return
            self._is_handing_over = True
        self._hand_over()


class _Level:
    """A tree of topic filters, by levels of the topic: the cost of a look-up does not grow with the number of links."""

    __slots__ = ("below", "links")

    def __init__(self) -> None:
        self.below: dict[str, _Level] = {}
        self.links: dict[InProcessLink, None] = {}

    def add(self, link: InProcessLink) -> None:
        """Enter a link under its filters."""
        for one in link.filters:
            level = self
            for name in one.split("/"):
                level = level.below.setdefault(name, _Level())
            level.links[link] = None

    def remove(self, link: InProcessLink) -> None:
        """Remove a link, and levels that become empty."""
        for one in link.filters:
            self.take_out(link, one.split("/"))

    def matching(self, names: Sequence[str]) -> Iterator[InProcessLink]:
        """Links with a filter that fits a topic; a link occurs once for each such filter."""
        if (rest := self.below.get("#")) is not None:
            yield from rest.links
        if not names:
            yield from self.links
            return
        for name in (names[0], "+"):
            if (level := self.below.get(name)) is not None:
                yield from level.matching(names[1:])

    def take_out(self, link: InProcessLink, names: Sequence[str]) -> None:
        """Remove a link from one filter, given by its levels."""
        if not names:
            self.links.pop(link, None)
            return
        level = self.below.get(names[0])
        if level is None:
            return
        level.take_out(link, names[1:])
        if not level.links and not level.below:
            del self.below[names[0]]
