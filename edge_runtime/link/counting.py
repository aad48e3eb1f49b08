"""The base of all links: limits of size, counts, and the reflex."""

from __future__ import annotations

import abc
import logging
import threading
from collections.abc import Callable

from edge_runtime.errors import MessageError
from edge_runtime.link.inbox import Inbox, Received
from edge_runtime.link.reflex import Reflex

logger = logging.getLogger(__name__)


class CountingLink(abc.ABC):
    """Base of the links.

    Attributes:
        events: events for the owner, oldest first.
        bytes_sent: payload bytes published so far.
        bytes_received: payload bytes received so far, oversized messages included.
        largest_message_bytes: the largest payload published or received so far.
        num_dropped_out: messages not published: no connection, or too many bytes unconfirmed.
        num_oversized_in: messages received over the limit, and dropped.
        num_refused: messages that the broker refused.
        last_refusal: message about the last refusal, one line; empty if there was none.
    """

    def __init__(self, max_message_bytes: int, reflex: Reflex | None) -> None:
        """Start all counts.

        Args:
            max_message_bytes: largest payload that is published or accepted.
            reflex: greeting and answer that the link sends without its owner.
        """
        self.events = Inbox()
        self.bytes_sent = 0
        self.bytes_received = 0
        self.largest_message_bytes = 0
        self.num_dropped_out = 0
        self.num_oversized_in = 0
        self.num_refused = 0
        self.last_refusal = ""
        self._max_message_bytes = max_message_bytes
        self._reflex = reflex
        self._lock = threading.Lock()

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 1; without a connection the message is dropped silently, and the protocol repeats it.

        Raises:
            MessageError: the payload is over the limit.
        """
        if len(payload) > self._max_message_bytes:
            msg = f"payload for {topic} is {len(payload)} bytes, at most {self._max_message_bytes} may be sent"
            raise MessageError(msg)
        is_sent = self._send(topic, payload)
        with self._lock:
            if is_sent:
                self.bytes_sent += len(payload)
                self.largest_message_bytes = max(self.largest_message_bytes, len(payload))
            else:
                self.num_dropped_out += 1
        if not is_sent:
            logger.debug("not sent (%d bytes, %s): no connection or too much under way", len(payload), topic)

    @abc.abstractmethod
    def _send(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the broker; False when it was dropped."""

    def _receive(self, topic: str, payload: bytes, acknowledge: Callable[[], None] | None) -> None:
        """Take a message from the broker.

        Args:
            topic: where it was published.
            payload: its bytes.
            acknowledge: acknowledges the message to the broker; None for QoS 0.
        """
        with self._lock:
            self.bytes_received += len(payload)
            is_oversized = len(payload) > self._max_message_bytes
            if is_oversized:
                self.num_oversized_in += 1
            else:
                self.largest_message_bytes = max(self.largest_message_bytes, len(payload))
        if self._reflex is not None and topic == self._reflex.topic and not is_oversized:
            if acknowledge is not None:
                acknowledge()
            if (answer := self._reflex.hear(payload)) is not None:
                self.publish(topic, answer)
            return
        if not is_oversized:
            self.events.deliver(Received(topic, payload), acknowledge)
            return
        logger.warning("dropped a message of %d bytes on %s: over the limit", len(payload), topic)
        if acknowledge is not None:
            acknowledge()
