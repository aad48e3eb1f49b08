"""The door to MQTT that devices and the coordinator share: one link that reconnects for ever.

A link has two threads (paho's network thread, and one that reconnects); its owner reads :attr:`MqttLink.events`. The
network thread never waits for the owner: messages beyond a limit stay at the broker (:mod:`edge_runtime.link.inbox`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Final

from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.link import backoff
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.causes import refusal_step
from edge_runtime.link.connection import Callbacks, Connection, Settings, UnsupportedProtocolError
from edge_runtime.link.counting import CountingLink
from edge_runtime.link.endings import STABLE_S, TAKEN_OVER, Ending, Endings
from edge_runtime.link.errors import BrokerUnreachableError, LinkError
from edge_runtime.link.inbox import Connected, Disconnected, LinkEvent, Received
from edge_runtime.link.reflex import Reflex

__all__ = ["BrokerAddress", "Connected", "Disconnected", "LinkEvent", "MqttLink", "Received", "Reflex", "TlsFiles"]

logger = logging.getLogger(__name__)

WATCH_S: Final = 1.0
"""Interval of the checks that the network thread is alive, seconds."""

TRIAL_POLL_S: Final = 0.2
"""Interval of the checks of a trial connection, seconds."""

CLOSE_TIMEOUT_S: Final = 3.0
"""Longest time of a good-bye."""

_PROTOCOL_NAMES: Final = {MQTTProtocolVersion.MQTTv5: "MQTT 5", MQTTProtocolVersion.MQTTv311: "MQTT 3.1.1"}


class MqttLink(CountingLink):
    """A connection to a broker that reconnects by itself."""

    def __init__(  # noqa: PLR0913 - all that stays the same from one connection to the next
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes] | None,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = 10.0,
        optional_subscriptions: Sequence[str] = (),
        reflex: Reflex | None = None,
        rng: random.Random,
    ) -> None:
        """Prepare a link; nothing happens before :meth:`connect`.

        Args:
            address: the broker.
            client_id: unique at the broker; a second link with the same id throws out the first.
            subscriptions: topic filters, subscribed to after every connect.
            will: topic and payload that the broker publishes when the connection breaks.
            max_message_bytes: largest payload that is published or accepted.
            tls: files for an encrypted address.
            connect_timeout_s: limit of one attempt.
            optional_subscriptions: further topic filters; a broker that refuses them is not an error.
            reflex: greeting and answer that the network thread gives by itself.
            rng: source of the jitter.

        Raises:
            AddressError: a TLS file cannot be used, or the address is not encrypted.
        """
        super().__init__(max_message_bytes, reflex)
        self._settings = Settings(
            address=address,
            client_id=client_id,
            subscriptions=tuple(subscriptions),
            optional_subscriptions=(*optional_subscriptions, *([] if reflex is None else [reflex.topic])),
            will=will,
            max_message_bytes=max_message_bytes,
            tls=(tls or TlsFiles()).context_for(address),
            connect_timeout_s=connect_timeout_s,
        )
        self._rng = rng
        self._protocols = [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311]
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._lost: queue.Queue[Ending] = queue.Queue()
        self._endings = Endings(client_id)
        self._keeper = threading.Thread(target=self._keep, name=f"link-{client_id}", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Return whether a message published now would reach the broker."""
        connection = self._connection
        return connection is not None and connection.is_open

    @property
    def is_all_confirmed(self) -> bool:
        """Return whether the broker has acknowledged every message."""
        connection = self._connection
        return connection is not None and connection.is_all_confirmed

    @property
    def has_room(self) -> bool:
        """Return whether a large answer would not be dropped: at most half of the permitted bytes are unconfirmed."""
        connection = self._connection
        return connection is not None and connection.has_room

    def connect(self, *, wait_for_broker: bool = False) -> None:
        """Connect for the first time, then keep the connection up until :meth:`close`.

        Args:
            wait_for_broker: if nobody answers, return at once and go on trying, instead of raising.

        Raises:
            BrokerUnreachableError: nobody answers (not with ``wait_for_broker``).
            BrokerRefusedError: the broker refuses.
        """
        try:
            self._attempt()
        except BrokerUnreachableError as error:
            if not wait_for_broker:
                raise
            logger.warning("%s; trying again until it answers", error)
            self._lost.put(Ending(reason=str(error)))
        self._keeper.start()

    def _send(self, topic: str, payload: bytes) -> bool:
        connection = self._connection
        return connection is not None and connection.publish(topic, payload) is not None

    def close(self, goodbye: tuple[str, bytes] | None = None) -> None:
        """Publish a last message, wait a bounded time for its delivery, disconnect cleanly, and stop for good."""
        self._closing.set()
        connection = self._connection
        if connection is not None and connection.is_open:
            if goodbye is not None:
                info = connection.publish(*goodbye)
                if info is not None:
                    with contextlib.suppress(RuntimeError, ValueError):
                        info.wait_for_publish(CLOSE_TIMEOUT_S)
            connection.close(CLOSE_TIMEOUT_S)
        if self._keeper.is_alive():
            self._lost.put(Ending(reason="closing"))
            self._keeper.join(self._settings.connect_timeout_s + CLOSE_TIMEOUT_S)

    def _attempt(self) -> None:
        """Try to connect once, first with the protocol version of the last connection."""
        problem: LinkError | None = None
        for protocol in list(self._protocols):
            callbacks = Callbacks(on_message=self._receive, on_lost=self._lost.put, on_refused=self._note_refusal)
            connection = Connection(self._settings, protocol, callbacks)
            try:
                connection.open()
            except UnsupportedProtocolError as error:
                logger.debug("%s", error)
                problem = error
                continue
            self._protocols.remove(protocol)
            self._protocols.insert(0, protocol)
            self._connection = connection
            logger.info("connected to %s (%s)", self._settings.address, _PROTOCOL_NAMES[protocol])
            if self._reflex is not None:
                self.publish(self._reflex.topic, self._reflex.greet())
            self.events.note(Connected(_PROTOCOL_NAMES[protocol]))
            return
        msg = f"broker {self._settings.address} speaks neither MQTT 5 nor 3.1.1 ({problem}): use another broker"
        raise BrokerUnreachableError(msg) from problem

    def _keep(self) -> None:
        """Run the thread that waits for the loss of the connection and reconnects, again and again."""
        failures = 0
        connected_at = time.monotonic()
        while True:
            ending, least_wait_s = self._wait_for_loss(), 0.0
            if self._closing.is_set():
                return
            if self._connection is not None:
                lasted_s = time.monotonic() - connected_at
                reason, least_wait_s = self._endings.note(ending, lasted_s)
                logger.warning("connection to %s lost: %s", self._settings.address, reason)
                self._connection = None
                self.events.note(Disconnected(reason))
                if self._endings.is_name_in_doubt and self._stays_under_another_name():
                    reason, least_wait_s = self._endings.note(Ending(reason=reason, code=TAKEN_OVER), lasted_s)
                    logger.warning("under another name the connection lasts: %s", reason)
                failures = 0 if lasted_s > STABLE_S else failures
            while True:
                failures += 1
                if self._closing.wait(least_wait_s + backoff.full_jitter(failures, self._rng)):
                    return
                try:
                    self._attempt()
                except LinkError as error:
                    logger.warning("%s; trying again", error)
                    continue
                connected_at = time.monotonic()
                break
            if self._closing.is_set() and self._connection is not None:
                self._connection.close(CLOSE_TIMEOUT_S)
                return

    def _stays_under_another_name(self) -> bool:
        """Return whether a trial connection with another client id lasts longer than those that ended."""
        other = f"{self._settings.client_id}:{secrets.token_hex(4)}"
        settings = dataclasses.replace(self._settings, client_id=other, subscriptions=(), will=None)
        callbacks = Callbacks(on_message=lambda *_: None, on_lost=lambda _ending: None, on_refused=lambda *_: None)
        connection = Connection(settings, self._protocols[0], callbacks)
        try:
            connection.open()
        except LinkError as error:
            logger.debug("%s", error)
            return False
        until = time.monotonic() + STABLE_S
        while connection.is_open and time.monotonic() < until and not self._closing.wait(TRIAL_POLL_S):
            pass
        lasted = connection.is_open
        connection.close(CLOSE_TIMEOUT_S)
        return lasted

    def _wait_for_loss(self) -> Ending:
        """Wait until the connection ends, and return its end."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._lost.get(timeout=WATCH_S)
            connection = self._connection
            if connection is not None and connection.is_dead:
                connection.bury()
                return Ending(reason="the network thread ended unexpectedly")

    def _note_refusal(self, topic: str, num_bytes: int, reason: str) -> None:
        """Record that the broker refused a message: it is no fault of the network, so nothing is repeated."""
        if self._reflex is not None and topic == self._reflex.topic:
            return  # the owner of the reflex notices that no answer comes
        with self._lock:
            self.num_refused += 1
            self.last_refusal = f"broker {self._settings.address} refused {num_bytes} bytes on {topic} ({reason})"
            is_told = self.num_refused & (self.num_refused - 1) == 0  # told at 1, 2, 4, ...
        if is_told:
            step = refusal_step(reason)
            logger.error("%s, %d refusals so far: %s", self.last_refusal, self.num_refused, step)
