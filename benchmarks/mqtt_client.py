"""MQTT 3.1.1 for thousands of thin devices in one thread: no thread, no lock and no queue per connection.

As much of the standard as devices need: CONNECT with a last will and a clean session, SUBSCRIBE, PUBLISH and PUBACK of
QoS 1, PINGREQ, DISCONNECT (OASIS, MQTT Version 3.1.1, 2014, section 3).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

CONNACK, PUBLISH, SUBACK = 0x20, 0x30, 0x90
READ_BYTES: Final = 256 * 1024


class MqttClient:
    """One connection. Its owner calls :meth:`read` when the socket is readable, and :meth:`write` while it has to."""

    def __init__(
        self,
        address: tuple[str, int],
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes],
        keepalive_s: int,
        *,
        on_connected: Callable[[], None],
        on_message: Callable[[bytes], None],
    ) -> None:
        """Connect.

        Args:
            address: host and port of the broker.
            client_id: unique at the broker.
            subscriptions: topic filters.
            will: topic and payload that the broker publishes when the connection breaks.
            keepalive_s: longest silence that the broker allows.
            on_connected: called once the broker has confirmed the subscriptions.
            on_message: called with the payload of each message.

        Raises:
            OSError: nobody answers.
        """
        self._subscriptions = subscriptions
        self._on_connected, self._on_message = on_connected, on_message
        self._received, self._to_write = bytearray(), bytearray()
        self._packet_id = 0
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        flags = 0x02 | 0x04 | 0x08  # clean session, a will, of QoS 1
        head = _text(b"MQTT") + struct.pack(">BBH", 4, flags, keepalive_s)
        self._send(0x10, head + _text(client_id.encode()) + _text(will[0].encode()) + _text(will[1]))

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 1."""
        self._send(0x32, _text(topic.encode()) + self._next_id() + payload)

    def ping(self) -> None:
        """Say that the connection is in use."""
        self._send(0xC0, b"")

    def close(self) -> None:
        """Disconnect; no last will is published."""
        self._send(0xE0, b"")
        self.socket.close()

    def read(self) -> bool:
        """Read the bytes that arrived; False when the connection is over."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self.socket.close()
            return False
        self._received += data
        at = 0
        while (packet := _packet(self._received, at)) is not None:
            kind, begin, at = packet
            self._take(kind, bytes(self._received[begin:at]))
        del self._received[:at]
        return True

    def write(self) -> bool:
        """Write the waiting bytes; False while some of them still wait."""
        with contextlib.suppress(BlockingIOError, OSError):
            while self._to_write:
                del self._to_write[: self.socket.send(self._to_write)]
        return not self._to_write

    def _take(self, kind: int, body: bytes) -> None:
        if kind & 0xF0 == PUBLISH:
            (length,) = struct.unpack_from(">H", body)
            begin = 2 + length
            if kind & 0x06:
                self._send(0x40, body[begin : begin + 2])
                begin += 2
            self._on_message(body[begin:])
        elif kind == CONNACK:
            self._send(0x82, self._next_id() + b"".join(_text(t.encode()) + b"\x01" for t in self._subscriptions))
        elif kind == SUBACK:
            self._on_connected()

    def _send(self, kind: int, body: bytes) -> None:
        self._to_write += bytes((kind,)) + _length(len(body)) + body
        self.write()

    def _next_id(self) -> bytes:
        self._packet_id = self._packet_id % 0xFFFF + 1
        return struct.pack(">H", self._packet_id)


def _text(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _length(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _packet(data: bytearray, at: int) -> tuple[int, int, int] | None:
    """Kind of the packet at a place, and where its body begins and ends; None while it is not whole."""
    length = shift = 0
    for index in range(at + 1, min(at + 5, len(data))):
        length |= (data[index] & 0x7F) << shift
        shift += 7
        if not data[index] & 0x80:
            end = index + 1 + length
            return (data[at], index + 1, end) if end <= len(data) else None
    return None
