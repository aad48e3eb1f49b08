"""The artifact server among clients that ask slowly, read slowly, or come by the thousand: honest ones are served."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from broker_server.serving.services.artifacts import make_app, server_config
from broker_server.serving.services.gate import MAX_CONNECTIONS, Gate, _site
from tests.waiting import wait_until

PLACES = 6
LARGE = 16 << 20
"""More than the system's buffers of a connection take."""

HALF = b"GET /d/small HTTP/1.1\r\nHost: x\r\nX: "
WHOLE = b"GET /d/%s HTTP/1.1\r\nHost: x\r\n\r\n"

Start = Callable[..., "Clients"]


class Clients:
    """Connections to one server."""

    def __init__(self, port: int, gate: Gate, stack: contextlib.ExitStack) -> None:
        self._port = port
        self._gate = gate
        self._stack = stack

    def connect(self, said: bytes, source: str = "127.0.0.1") -> socket.socket:
        """A connection that says something and reads nothing yet."""
        client = socket.socket()
        self._stack.enter_context(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(20)
        client.bind((source, 0))
        client.connect(("127.0.0.1", self._port))
        client.sendall(said)
        return client

    def arrive(self, num_inside: int, num_served: int = 0) -> None:
        """Wait until so many hold a place, and an answer is on its way to so many of them."""
        wait_until(lambda: len(self._gate._inside) == num_inside)
        wait_until(lambda: sum(not one.is_asking for one in list(self._gate._inside)) == num_served)

    def is_served(self, name: str) -> bool:
        """Ask once, and return whether that was answered: a refusal may be lost with its connection."""
        return read(self.connect(WHOLE % name.encode())).startswith(b"HTTP/1.1 200 ")

    def get(self, name: str, source: str = "127.0.0.1") -> tuple[int, int]:
        """Status of an answer that is read at once, and bytes of its body."""
        answer = read(self.connect(WHOLE % name.encode(), source))
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), len(body)


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes or cuts the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while block := client.recv(1 << 20):
            answer += block
    return answer


def is_open(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        client.settimeout(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    (root / "d").mkdir()
    (root / "d" / "small").write_bytes(b"x" * 1000)
    with (root / "d" / "large").open("wb") as file:
        file.truncate(LARGE)
    return root


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a server with times of a gate; gives its clients."""
    with contextlib.ExitStack() as stack:

        def begin(**times: float) -> Clients:
            gate = Gate(PLACES, time.monotonic, **({"header_s": 60.0, "stall_s": 60.0, "slow_s": 60.0} | times))
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = uvicorn.Server(server_config(make_app(folder, gate), gate))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()

            def end() -> None:
                server.should_exit = True
                thread.join(10)

            stack.callback(end)
            while not server.started:
                time.sleep(0.01)
            return Clients(listening.getsockname()[1], gate, stack)

        yield begin


def test_a_request_that_does_not_come_whole_is_ended_with_a_reason(start: Start) -> None:
    clients = start(header_s=0.5)
    silent, half = clients.connect(b""), clients.connect(HALF)
    dripping = clients.connect(HALF)

    def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                dripping.sendall(b"y")
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()

    assert [read(client).split(b"\r\n")[0] for client in (silent, half)] == [b"HTTP/1.1 408 Request Timeout"] * 2
    assert b"408" in read(dripping) or not is_open(dripping)
    assert clients.get("small") == (200, 1000)


def test_half_open_requests_give_way_to_downloads(start: Start) -> None:
    clients = start()
    waiting = [clients.connect(HALF) for _ in range(10 * PLACES)]
    wait_until(lambda: sum(is_open(client) for client in waiting) == PLACES)

    assert [clients.get("small") for _ in range(5)] == [(200, 1000)] * 5
    assert clients.get("large") == (200, LARGE)
    assert sum(is_open(client) for client in waiting) <= PLACES


def test_answers_that_nobody_takes_give_way_to_downloads(start: Start) -> None:
    clients = start(slow_s=0.2)
    for _ in range(2 * PLACES):
        clients.connect(WHOLE % b"large")
    clients.arrive(PLACES, num_served=PLACES)
    wait_until(lambda: clients.is_served("small"))  # after two looks of the gate

    assert [clients.get("small") for _ in range(5)] == [(200, 1000)] * 5


def test_an_answer_that_nobody_takes_ends(start: Start) -> None:
    clients = start(stall_s=1.0)
    stalled = clients.connect(WHOLE % b"large")
    clients.arrive(1, num_served=1)
    clients.arrive(0)

    assert len(read(stalled)) < LARGE


def test_a_slow_reader_that_goes_on_gets_everything(start: Start) -> None:
    clients = start(stall_s=2.5, slow_s=2.5)
    client, taken = clients.connect(WHOLE % b"large"), 0
    began = time.monotonic()
    while time.monotonic() < began + 4:
        taken += len(client.recv(100_000))
        time.sleep(0.05)

    assert taken + len(read(client)) > LARGE


def test_whoever_takes_an_answer_keeps_the_place(start: Start) -> None:
    clients = start()
    served = [clients.connect(WHOLE % b"large") for _ in range(PLACES)]
    clients.arrive(PLACES, num_served=PLACES)

    refused = read(clients.connect(WHOLE % b"small"))
    assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: ")
    assert [len(read(client)) > LARGE for client in served] == [True] * PLACES
    clients.arrive(0)
    assert clients.get("small") == (200, 1000)


def test_the_address_with_most_connections_pays(start: Start) -> None:
    clients = start()
    few = clients.connect(HALF, source="127.0.0.3")
    clients.arrive(1)
    many = [clients.connect(HALF, source="127.0.0.2") for _ in range(PLACES - 1)]
    clients.arrive(PLACES)

    assert [clients.get("small", source="127.0.0.4") for _ in range(3)] == [(200, 1000)] * 3
    assert is_open(few)
    assert not is_open(many[0])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /d/" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET /d/small HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET /d/small HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 8_000 + b"\r\n", b"431"),
        (b"GET /d/small HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b"0-0," * 10_000 + b"1-1\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
    ],
    ids=["long line", "long header", "many headers", "many ranges", "TLS", "no path"],
)
def test_what_no_device_would_ask_is_refused(start: Start, request_: bytes, status: bytes) -> None:
    clients = start()
    client = clients.connect(b"")
    with contextlib.suppress(ConnectionError):  # it may be cut while the rest is on its way
        client.sendall(request_)
    answer = read(client)
    assert answer == b"" or answer.split()[1] == status
    assert clients.get("small") == (200, 1000)


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-1,3-4",
        "bytes=" + ",".join(f"{i}-{i}" for i in range(0, 900, 2)),
        "bytes=1_0-2_0",
        "bytes=" + "9" * 5000,
    ],
    ids=["two", "many small", "underscores", "a long number"],
)
def test_one_range_of_bytes_at_a_time(start: Start, wanted: str) -> None:
    said = f"GET /d/small HTTP/1.1\r\nHost: x\r\nRange: {wanted}\r\n\r\n"
    answer = read(start().connect(said.encode()))
    assert answer.startswith(b"HTTP/1.1 416 ")
    assert b"expected one range of bytes" in answer


def test_a_request_that_goes_on_for_ever_is_answered_once(start: Start) -> None:
    clients = start()
    answer = read(clients.connect(WHOLE % b"small" * 50))
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    body = b"POST /d/small HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n" + b"z" * 1000
    assert b" 405 " in read(clients.connect(body))


def test_places_leave_descriptors_for_files() -> None:
    script = "from broker_server.serving.services.gate import max_connections; print(max_connections())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answers = [
        subprocess.run(
            ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", sys.executable, "-c", script],
            capture_output=True, text=True, check=True, env=env,
        ).stdout
        for limit in ("-n 1024", "-Sn 256", "-n 170")
    ]  # fmt: skip
    assert [int(answer) for answer in answers] == [430, MAX_CONNECTIONS, 3]


def test_an_ipv6_network_is_one_address() -> None:
    assert _site(("2001:db8:1:2::7", 1, 0, 0)) == _site(("2001:db8:1:2:ffff::1", 9, 0, 0)) == "2001:db8:1:2::/64"
    assert _site(("fe80::1%eth0", 1, 0, 2)) == "fe80::/64"
    assert _site(("::ffff:10.0.0.1", 1, 0, 0)) != _site(("::ffff:10.0.0.2", 1, 0, 0))
    assert (_site(("10.0.0.1", 1)), _site(None)) == ("10.0.0.1", "")
