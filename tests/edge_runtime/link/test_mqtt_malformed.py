"""Bytes that no broker should send, and a network thread that dies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge_runtime.link.mqtt import Connected, Disconnected, Received
from tests.edge_runtime.link.links import MakeLink, next_event

CONNACK = bytes([0x20, 3, 0, 0, 0])
MALFORMED = {
    "topic longer than its packet": b"\x30\x05\xff\xffabc",
    "packet ends within the topic's length": b"\x30\x01\x00",
    "unknown property": b"\x30\x06\x00\x01t\x02\x7e\x00",
    "unknown reason of a PUBACK": b"\x40\x03\x00\x01\x05",
    "PUBACK without a packet identifier": b"\x40\x01\x00",
    "unknown packet type": b"\xf0\x01\x00",
}


@pytest.fixture
def serve_malformed() -> Iterator[Callable[[bytes], str]]:
    """A server that answers CONNECT and SUBSCRIBE as a broker does; its first connection then gets these bytes."""
    stop, threads, sockets = threading.Event(), [], []

    def start(bad: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(0.1)
        sockets.append(server)

        def serve() -> None:
            packets = [bad]
            while not stop.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                sockets.append(peer)
                peer.settimeout(5)
                peer.recv(1000)
                peer.sendall(CONNACK)
                subscribe = peer.recv(1000)
                peer.sendall(b"\x90\x04" + subscribe[2:4] + b"\x00\x01")
                if packets:
                    peer.sendall(packets.pop())

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return f"mqtt://127.0.0.1:{server.getsockname()[1]}"

    yield start
    stop.set()
    for thread in threads:
        thread.join()
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("bad", list(MALFORMED.values()), ids=list(MALFORMED))
def test_a_malformed_packet_is_a_lost_connection(
    serve_malformed: Callable[[bytes], str], make_link: MakeLink, bad: bytes
) -> None:
    link = make_link(serve_malformed(bad))
    link.connect()
    next_event(link, Connected)
    next_event(link, Disconnected)
    next_event(link, Connected)
    assert link.is_connected


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0x8E, "another client connects as 'a' and takes the place of this one"),
        (0x87, "Not authorized): check the broker's ACL"),
        (0x95, "Packet too large): raise the broker's limit"),
        (0x97, "Quota exceeded): raise the broker's quota"),
        (0x8B, "the broker ended it: Server shutting down"),
    ],
)
def test_a_broker_that_ends_a_connection_with_a_reason_is_believed(
    serve_malformed: Callable[[bytes], str], make_link: MakeLink, code: int, said: str
) -> None:
    link = make_link(serve_malformed(bytes([0xE0, 2, code, 0])))
    link.connect()
    assert said in next_event(link, Disconnected).reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is what the test is about
def test_a_dead_network_thread_is_a_lost_connection(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    receive = link._receive

    def fail_once(topic: str, payload: bytes, acknowledge: object) -> None:
        link._receive = receive  # type: ignore[method-assign]
        raise RuntimeError(topic, payload, acknowledge)

    link._receive = fail_once  # type: ignore[method-assign]
    link.connect()
    next_event(link, Connected)
    link.publish("t/x", b"deadly")
    assert "network thread" in next_event(link, Disconnected).reason
    next_event(link, Connected)
    link.publish("t/x", b"alive")
    assert next_event(link, Received).payload == b"alive"
