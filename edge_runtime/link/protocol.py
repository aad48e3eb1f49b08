"""The protocol of links: connections to a broker that reconnect by themselves, over MQTT or inside one process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from edge_runtime.link.inbox import Inbox
from edge_runtime.link.reflex import Reflex


class Link(Protocol):
    """A connection to a broker; :class:`~edge_runtime.link.counting.CountingLink` describes the attributes."""

    events: Inbox
    bytes_sent: int
    bytes_received: int
    largest_message_bytes: int
    num_dropped_out: int
    num_oversized_in: int
    num_refused: int
    last_refusal: str

    @property
    def is_connected(self) -> bool:
        """Return whether a message published now would reach the broker."""
        ...

    @property
    def is_all_confirmed(self) -> bool:
        """Return whether the broker has acknowledged every message."""
        ...

    @property
    def has_room(self) -> bool:
        """Return whether a large answer can be published now: there is a connection, and its queue is not full."""
        ...

    def connect(self, *, wait_for_broker: bool = False) -> None:
        """Connect for the first time, then keep the connection up until :meth:`close`.

        Args:
            wait_for_broker: if nobody answers, return at once and go on trying, instead of raising.

        Raises:
            BrokerUnreachableError: nobody answers (not with ``wait_for_broker``).
            BrokerRefusedError: the broker refuses.
        """
        ...

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at least once; without a connection the message is dropped without an error.

        Raises:
            MessageError: the payload is over the limit.
        """
        ...

    def close(self, goodbye: tuple[str, bytes] | None = None) -> None:
        """Publish a last message, disconnect cleanly (no last will is published), and stop for good."""
        ...


class OpenLink(Protocol):
    """Prepares a link to one broker; nothing happens before :meth:`Link.connect`."""

    def __call__(
        self,
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes] | None,
        max_message_bytes: int,
        optional_subscriptions: Sequence[str] = (),
        reflex: Reflex | None = None,
        rng: random.Random,
    ) -> Link:
        """Prepare a link.

        Args:
            client_id: unique at the broker; a second link with the same id throws out the first.
            subscriptions: topic filters, subscribed to after every connect.
            will: topic and payload that the broker publishes when the connection breaks.
            max_message_bytes: largest payload that is published or accepted.
            optional_subscriptions: further topic filters; a broker that refuses them is not an error.
            reflex: greeting and answer that the link sends without its owner.
            rng: source of the jitter between attempts to connect.

        Raises:
            AddressError: a TLS file cannot be used, or the address is not encrypted.
        """
        ...
