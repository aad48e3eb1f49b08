"""Messages and blobs between coordinator and devices; every incoming message is checked here or refused."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from broker_server.serving.coordinator.buckets import Allowance, Bucket
from broker_server.serving.coordinator.registry import MESSAGES, Registry
from edge_runtime.errors import MessageError
from edge_runtime.link.complaints import Complaints
from edge_runtime.link.protocol import Link
from edge_runtime.link.transfers import WINDOW, Transfers
from edge_runtime.wire import topics
from edge_runtime.wire.messages import (
    HEARTBEAT_S,
    AnyMessage,
    BlobRef,
    Chunk,
    ChunkRequest,
    Failure,
    Presence,
    Register,
    Status,
    Update,
    decode_message,
    device_of,
    encode_message,
    kind_of,
)
from edge_runtime.wire.replies import RefusedReply, refused_reply
from edge_runtime.wire.versions import SchemaVersionError, word_to

logger = logging.getLogger(__name__)

SILENCE_S: Final = 3 * HEARTBEAT_S
"""Silence after which a device counts as offline, even if the broker did not publish its will."""

MAX_REGISTRATION_BYTES: Final = 8 * 1024
"""Largest registration that is read; a normal one has less than 1 KB."""
HELLOS: Final = Allowance(burst=1000, per_s=50)
"""Answers to devices that have not registered, all of them together."""
PULLS_S: Final = 60.0
"""In a round a device may pull the largest blob :data:`PULLS` times at once, and as often again in this time."""
PULLS: Final = 4


class Other(enum.Enum):
    """Kinds of input that are not a message."""

    BLOBS = enum.auto()
    """Chunks, or a request for chunks; already handled."""
    STRANGER = enum.auto()
    """A message of an unknown device, which must register first."""


DeviceMessage = Register | Presence | Status | Update | Failure | RefusedReply
"""Messages of a device, except requests for chunks and chunks."""


_REGISTER: Final = Register.__name__.lower()
_ABOUT_BLOBS: Final = (Chunk.__name__.lower(), ChunkRequest.__name__.lower())


class DeviceChannel:
    """Sends and receives for one fleet. Belongs to the thread of the event loop.

    Messages wait for :meth:`post`, so that the facts in them are on disk before they are sent. Requests for chunks are
    sent at once. Requests of devices for chunks are answered in turn while the link has room: a full connection would
    drop chunks, and devices would request them again only seconds later.
    """

    def __init__(self, fleet: str, link: Link, clock: Callable[[], float], *, max_devices: int) -> None:
        self._fleet = fleet
        self._link = link
        self._clock = clock
        self._transfers = Transfers(self._send, clock)
        self._messages: list[tuple[str, bytes]] = []
        self._asked: dict[tuple[str, str], ChunkRequest] = {}
        """Requests that wait for room on the link, by device and digest: one for each blob that is offered."""
        self._hellos = Bucket()
        self._num_chunks: dict[str, int] = {}
        """Number of chunks of the offered blobs, by digest."""
        self.complaints = Complaints(logger)
        self.registry = Registry(SILENCE_S, max_devices)
        self.num_refused = 0
        """Payloads that were not messages of the protocol, or came from the wrong sender."""

    def to(self, device_id: str, message: AnyMessage) -> int:
        """Queue a message to one device; without a connection it is lost, and the protocol repeats it.

        Returns:
            Bytes of the message.
        """
        payload = encode_message(message)
        self._messages.append((topics.down(self._fleet, device_id, kind_of(message)), payload))
        return len(payload)

    def to_all(self, message: AnyMessage) -> None:
        """Queue a message to every device."""
        self._messages.append((topics.to_all(self._fleet, kind_of(message)), encode_message(message)))

    def post(self) -> None:
        """Publish the queued messages."""
        waiting, self._messages = self._messages, []
        for topic, payload in waiting:
            self._link.publish(topic, payload)
        self._serve()

    def open(self, topic: str, payload: bytes) -> tuple[str, DeviceMessage | Other] | None:
        """Return the sender of a payload, and its message or kind; None if the payload was refused.

        For a refused reply the message has the assignment and the reason of the refusal.
        """
        try:
            device_id = topics.sender(topic)
        except MessageError as error:
            self._refuse(topic, str(error))
            return None
        kind = topic.rpartition("/")[2]
        if not self.registry.knows(device_id) and kind != _REGISTER:
            return (device_id, Other.STRANGER) if self._hellos.take(HELLOS, self._clock()) else None
        if not self._may_write(device_id, kind, len(payload)):
            return None
        message = self._decode(device_id, topic, payload)
        if message is None or isinstance(message, DeviceMessage):
            return None if message is None else (device_id, message)
        self._take(device_id, topic, message)
        return device_id, Other.BLOBS

    def _decode(self, device_id: str, topic: str, payload: bytes) -> AnyMessage | RefusedReply | None:
        """A device's message; for a refused reply, the assignment that it answers; None if it was refused."""
        kind = topic.rpartition("/")[2]
        try:
            message = decode_message(payload)
            if device_of(message, device_id) != device_id or kind_of(message) != kind:
                msg = f"a {kind_of(message)} of {device_of(message, device_id)!r} does not belong on {topic}"
                raise MessageError(msg)  # noqa: TRY301 - refused like the others
        except SchemaVersionError as error:
            self._tell_of_version(device_id, error)
            return None
        except MessageError as error:
            self._refuse(topic, str(error))
            reply = refused_reply(payload, str(error))
            return None if reply is None or reply.key.device_id != device_id else reply
        return message

    def _tell_of_version(self, device_id: str, error: SchemaVersionError) -> None:
        """Log that a device has another release, and send it a message that every release can show."""
        self.num_refused += 1
        self.complaints.say(f"device {device_id}", self._clock(), str(error))
        if self._hellos.take(HELLOS, self._clock()):
            self._messages.append((topics.down(self._fleet, device_id, "refused"), word_to(error)))

    def _may_write(self, device_id: str, kind: str, num_bytes: int) -> bool:
        """Return whether a payload is read at all."""
        now = self._clock()
        if kind == _REGISTER and num_bytes > MAX_REGISTRATION_BYTES:
            text = f"its registration of {num_bytes} bytes is not read: at most {MAX_REGISTRATION_BYTES} bytes are"
            self.complaints.say(f"device {device_id}", now, text)
            return False
        if kind in _ABOUT_BLOBS or not self.registry.knows(device_id) or self.registry.may_write(device_id, now):
            return True
        text = f"it sends more than {MESSAGES.per_s:g} messages a second: those beyond are not read"
        self.complaints.say(f"device {device_id}", now, text)
        return False

    def _take(self, device_id: str, topic: str, message: AnyMessage) -> None:
        now = self._clock()
        self.registry.heard(device_id, now)
        if isinstance(message, ChunkRequest):
            most = max(self._num_chunks.values(), default=0)
            allowance = Allowance(burst=PULLS * most + WINDOW, per_s=PULLS * most / PULLS_S)
            wanted = tuple(dict.fromkeys(message.missing))[:WINDOW]
            if not self.registry.may_pull(device_id, len(wanted), allowance, now):
                self.complaints.say(
                    f"device {device_id}", now, "it asks for the same chunks again and again: it waits for them"
                )
                return
            if message.digest in self._num_chunks:
                key = (device_id, message.digest)
                before = self._asked[key].missing if key in self._asked else ()
                missing = tuple(dict.fromkeys((*before, *wanted)))[:WINDOW]
                self._asked[key] = msgspec.structs.replace(message, missing=missing)  # keeps its place in the order
                self._serve()
                return
        if not self._transfers.handle(device_id, message):
            self._refuse(topic, f"a device does not send {kind_of(message)}")

    def offer(self, ref: BlobRef, blob: bytes) -> None:
        """Let devices pull a blob."""
        self._num_chunks[ref.digest] = ref.num_chunks
        self._transfers.offer(ref.digest, lambda: blob, chunk_bytes=ref.chunk_bytes)

    def withdraw(self, digest: str) -> None:
        """Stop offering a blob."""
        self._num_chunks.pop(digest, None)
        self._asked = {key: request for key, request in self._asked.items() if key[1] != digest}
        self._transfers.withdraw(digest)
        if not self._num_chunks:
            self.registry.renew_pulls()  # the round is over; the next one has other blobs

    def pull(
        self, ref: BlobRef, device_id: str, on_complete: Callable[[bytes], None], on_failed: Callable[[str], None]
    ) -> None:
        """Pull a blob from a device; :meth:`open` calls the callbacks."""
        self._transfers.expect(ref, device_id, on_complete, on_failed)

    def is_pulling(self, ref: BlobRef, device_id: str) -> bool:
        """Return whether a blob is on its way, or waits for its turn."""
        return self._transfers.is_expected(ref.digest, device_id)

    def stop_pulling(self, ref: BlobRef, device_id: str) -> None:
        """Give up a blob."""
        self._transfers.cancel(ref.digest, device_id)

    def reconnected(self) -> None:
        """Request missing chunks again, and do not count silence during the coordinator's own disconnection."""
        self.registry.excuse(self._clock())
        self._transfers.ask_again()

    def tick(self) -> None:
        """Repeat requests that were not answered, and serve those of devices."""
        self._transfers.tick()
        self._serve()

    def _serve(self) -> None:
        """Answer devices that asked for chunks, those that waited longest first, while there is room."""
        while self._asked and self._link.has_room:
            key = next(iter(self._asked))
            self._transfers.handle(key[0], self._asked.pop(key))

    def _send(self, device_id: str, message: AnyMessage) -> None:
        self._link.publish(topics.down(self._fleet, device_id, kind_of(message)), encode_message(message))

    def _refuse(self, topic: str, why: str) -> None:
        self.num_refused += 1
        if self.num_refused & (self.num_refused - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the log
            logger.warning("refused a payload on %r (%d so far): %s", topic, self.num_refused, why)
