"""The coordinator's post: messages out, messages in, blobs both ways; what comes in is checked here or refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from broker_server.coordinator.registry import Registry
from edge_runtime.link.mqtt import MqttLink
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire import topics
from edge_runtime.wire.errors import MessageError
from edge_runtime.wire.messages import (
    AnyMessage,
    BlobRef,
    Failure,
    Presence,
    Register,
    Status,
    Update,
    decode_message,
    encode_message,
    kind_of,
)
from edge_runtime.wire.replies import RefusedReply, refused_reply

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 15.0
"""How often a device says that it is there."""
SILENCE_S: Final = 3 * HEARTBEAT_S
"""A device that said nothing for this long counts as offline, also when the broker did not publish its will."""

Letter = Register | Presence | Status | Update | Failure | RefusedReply
"""What a device may say, beside asking for chunks and sending them."""


class Mailroom:
    """Sends and receives for one fleet. Belongs to the thread of the event loop.

    Letters wait for :meth:`post`, so that none tells of what is not on disk yet; chunks and requests for them do not.
    """

    def __init__(self, fleet: str, link: MqttLink, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._link = link
        self._clock = clock
        self._transfers = Transfers(self._send, clock)
        self._letters: list[tuple[str, bytes]] = []
        self.registry = Registry(SILENCE_S)
        self.num_refused = 0
        """Payloads that were no message of the protocol, or came from the wrong sender."""

    def to(self, device_id: str, message: AnyMessage) -> None:
        """Write a message to one device; lost without a connection, since the protocol repeats itself."""
        self._letters.append((topics.down(self._fleet, device_id, kind_of(message)), encode_message(message)))

    def to_all(self, message: AnyMessage) -> None:
        """Write a message to every device."""
        self._letters.append((topics.to_all(self._fleet, kind_of(message)), encode_message(message)))

    def post(self) -> None:
        """Publish what was written."""
        letters, self._letters = self._letters, []
        for topic, payload in letters:
            self._link.publish(topic, payload)

    def open(self, topic: str, payload: bytes) -> tuple[str, Letter] | None:
        """Sender and message of a payload; None if it was about blobs (and is dealt with), or was refused.

        Of a refused reply to an assignment, what assignment it answers and why it was refused.
        """
        device_id = None
        try:
            device_id = topics.sender(topic)
            message = decode_message(payload)
            claimed = getattr(message, "device_id", device_id)
            if claimed != device_id:
                msg = f"message on {topic} claims to come from {claimed!r}"
                raise MessageError(msg)  # noqa: TRY301 - refused like the others
        except MessageError as error:
            self._refuse(topic, str(error))
            reply = None if device_id is None else refused_reply(payload, str(error))
            return None if reply is None or reply.device_id != device_id else (reply.device_id, reply)
        if isinstance(message, Letter):
            return device_id, message
        self.registry.heard(device_id, self._clock())
        if not self._transfers.handle(device_id, message):
            self._refuse(topic, f"a device does not send {kind_of(message)}")
        return None

    def offer(self, ref: BlobRef, blob: bytes) -> None:
        """Let devices pull a blob."""
        self._transfers.offer(ref.digest, lambda: blob, chunk_bytes=ref.chunk_bytes)

    def withdraw(self, digest: str) -> None:
        """Let nobody pull a blob any more."""
        self._transfers.withdraw(digest)

    def pull(
        self, ref: BlobRef, device_id: str, on_complete: Callable[[bytes], None], on_failed: Callable[[str], None]
    ) -> None:
        """Pull a blob from a device; both callbacks come out of :meth:`open`."""
        self._transfers.expect(ref, device_id, on_complete, on_failed)

    def stop_pulling(self, ref: BlobRef, device_id: str) -> None:
        """Give up a blob."""
        self._transfers.cancel(ref.digest, device_id)

    def reconnected(self) -> None:
        """Ask again for what is missing, and forgive silence that was on this side."""
        self.registry.excuse(self._clock())
        self._transfers.ask_again()

    def tick(self) -> None:
        """Repeat requests that were not answered."""
        self._transfers.tick()

    def _send(self, device_id: str, message: AnyMessage) -> None:
        self._link.publish(topics.down(self._fleet, device_id, kind_of(message)), encode_message(message))

    def _refuse(self, topic: str, why: str) -> None:
        self.num_refused += 1
        if self.num_refused & (self.num_refused - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the log
            logger.warning("refused a payload on %r (%d so far): %s", topic, self.num_refused, why)
