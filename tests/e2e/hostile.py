"""Clients that break every promise of the protocol: each is one attack, on its own topics unless it says otherwise."""

from __future__ import annotations

import contextlib
import http.server
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker_server.config import CoordinatorConfig
from edge_runtime.bounds import limits
from edge_runtime.errors import MessageError
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.measures import Capabilities, LocalEvaluation, Measurements
from edge_runtime.wire.messages import (
    AnyMessage,
    Assignment,
    AssignmentKey,
    BlobRef,
    ChunkRequest,
    DeviceState,
    Hello,
    Register,
    Status,
    Update,
    Welcome,
    decode_message,
    kind_of,
)

_encoder = msgspec.msgpack.Encoder()

CAPABILITIES: Final[dict[str, Any]] = {
    "architecture": "x86_64",
    "operating_system": "x",
    "num_cores": 1,
    "num_threads": 1,
    "memory_bytes": 1 << 30,
    "memory_limit_bytes": 1 << 29,
    "versions": {"x": "1"},
    "matmul_gflops": 1.0,
    "memory_copy_gb_s": 1.0,
}
MEASUREMENTS: Final[dict[str, Any]] = {
    "train_s": 1.0,
    "step_s_p50": 0.1,
    "step_s_p95": 0.1,
    "fetch_s": 0.1,
    "prepare_s": 0.1,
    "evaluate_s": 0.1,
    "peak_rss_bytes": 1 << 27,
    "bytes_up": 1000,
    "bytes_down": 1000,
}


class Attacker:
    """One client of the broker. ``hear`` is called with every message to ``device_id``; ``attack`` again and again."""

    pause_s = 0.05

    def __init__(self, config: CoordinatorConfig, port: int, device_id: str) -> None:
        self.device_id = device_id
        self.config = config
        self.num_sent = 0
        self.error: BaseException | None = None
        self._is_over = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"x-{secrets.token_hex(6)}", protocol=paho.MQTTv5
        )
        self._client.max_queued_messages_set(0)
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(name, 1) for name in topics.device_subscriptions(config.fleet, device_id)]
        )
        self._client.on_message = lambda _client, _data, message: self._heard(bytes(message.payload))
        self._client.connect("127.0.0.1", port, 30)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._client.loop_start()
        self._thread.start()

    def stop(self) -> None:
        """End; what went wrong in the attacker itself is raised."""
        self._is_over.set()
        self._thread.join(10)
        self._client.disconnect()
        self._client.loop_stop()
        if self.error is not None:
            raise self.error

    def attack(self) -> None:
        """One move."""

    def hear(self, message: AnyMessage) -> None:
        """A message to this device."""

    def say(self, message: AnyMessage, device_id: str | None = None) -> None:
        """Publish on the topics of a device, without any check of what the message holds."""
        self.publish(topics.up(self.config.fleet, device_id or self.device_id, kind_of(message)), message)

    def publish(self, topic: str, message: AnyMessage | bytes, *, retain: bool = False) -> None:
        """Publish anything anywhere."""
        data = message if isinstance(message, bytes) else _encoder.encode(message)
        self._client.publish(topic, data, qos=1, retain=retain)
        self.num_sent += 1

    def register(self, device_id: str | None = None, **capabilities: Any) -> None:
        """Register a device of ten examples."""
        known = Capabilities(**{**CAPABILITIES, **capabilities})
        name = device_id or self.device_id
        self.say(Register(device_id=name, session_id="s", capabilities=known, num_examples=10), name)

    def wait(self, seconds: float) -> bool:
        """Sleep; False when the attack is over."""
        return not self._is_over.wait(seconds)

    def _run(self) -> None:
        try:
            self.register()
            while self.wait(self.pause_s):
                self.attack()
        except BaseException as error:  # noqa: BLE001 - raised by stop
            self.error = error

    def _heard(self, payload: bytes) -> None:
        try:
            message = decode_message(payload)
            if isinstance(message, Hello):
                self.register()
            self.hear(message)
        except MessageError:
            return
        except Exception as error:  # noqa: BLE001 - raised by stop
            self.error = error


def update(assignment: Assignment, ref: BlobRef, **changes: Any) -> Update:
    """An update that looks right, but for ``changes``."""
    right = {
        "key": assignment.key,
        "blob": ref,
        "num_examples": 10,
        "train_loss": 1.0,
        "measurements": Measurements(**MEASUREMENTS),
    }
    return Update(**{**right, **changes})


class Liar(Attacker):
    """Numbers without bounds: more examples than there are atoms, times beyond all clocks, what is not a number."""

    def hear(self, message: AnyMessage) -> None:
        """Answer an assignment with every lie."""
        if not isinstance(message, Assignment):
            return
        ref = chunks.describe(b"x" * 2000)
        nan, inf = float("nan"), float("inf")
        evaluation = LocalEvaluation(
            loss_before=nan, loss_after=inf, accuracy_before=nan, accuracy_after=2.0, num_targets=1
        )
        for seconds in (nan, inf, -1.0, 1e308, 1e200):
            measured = Measurements(**{**MEASUREMENTS, "train_s": seconds})
            self.say(update(message, ref, measurements=measured))
        huge = Measurements(**{**MEASUREMENTS, "peak_rss_bytes": 2**62})
        lies: tuple[dict[str, Any], ...] = (
            {"measurements": huge},
            {"num_examples": 10**18},
            {"num_examples": 2**63 - 1},
            {"train_loss": nan},
            {"train_loss": 1e308},
            {"evaluation": evaluation},
            {"key": msgspec.structs.replace(message.key, round_number=2**40)},
            {"blob": msgspec.structs.replace(ref, size_bytes=2**62)},
        )
        for lie in lies:
            self.say(update(message, ref, **lie))


class Flooder(Attacker):
    """Two thousand characters of status, as fast as they go."""

    pause_s = 0.0
    num_left = 4000

    def attack(self) -> None:
        """Say the same again."""
        if self.num_left <= 0:
            self.wait(1.0)
            return
        self.num_left -= 1
        detail = "\x1b[31m" + "x" * (limits.MAX_TEXT - 10)
        self.say(Status(device_id=self.device_id, session_id="s", state=DeviceState.TRAINING, detail=detail))
        if self.num_left % 100 == 0:
            self.wait(0.1)


class Ghosts(Attacker):
    """Registers devices that are not there."""

    num_left = 20

    def attack(self) -> None:
        """Register one more."""
        if self.num_left > 0:
            self.num_left -= 1
            self.register(f"ghost-{self.num_left}")


class Registrar(Attacker):
    """Registrations of 85 KB, each of a new device."""

    num_left = 300

    def attack(self) -> None:
        """Register one more."""
        if self.num_left > 0:
            self.num_left -= 1
            self.register(f"huge-{self.num_left}", versions={f"{'v' * 40}{n}": "x" * 1000 for n in range(80)})


class Announcer(Attacker):
    """Announces updates of devices that never registered."""

    pause_s = 0.01
    num_left = 3000

    def attack(self) -> None:
        """Announce one more."""
        if self.num_left <= 0:
            return
        self.num_left -= 1
        ref = BlobRef(digest="0" * 64, size_bytes=1, chunk_bytes=1024)
        stranger = f"stranger-{self.num_left}"
        message = Update(
            key=AssignmentKey(run_id=self.config.run_id, round_number=99, device_id=stranger, attempt=1),
            blob=ref, num_examples=1, train_loss=1.0, measurements=Measurements(**MEASUREMENTS),
        )  # fmt: skip
        self.say(message, stranger)


class Dripper(Attacker):
    """Announces an update and sends a kilobyte of it every four seconds."""

    def __init__(self, config: CoordinatorConfig, port: int, device_id: str) -> None:
        super().__init__(config, port, device_id)
        self._blob = encode_payload(Payload(adapter={"x": np.ones(30_000, dtype=np.float32)}))
        self._ref = chunks.describe(self._blob, limits.MIN_CHUNK_BYTES)
        self._wanted: list[int] = []
        self._next_at = 0.0

    def hear(self, message: AnyMessage) -> None:
        """Announce; remember what is asked for."""
        if isinstance(message, Assignment):
            self.say(update(message, self._ref))
        elif isinstance(message, ChunkRequest):
            self._wanted = list(message.missing)

    def attack(self) -> None:
        """Send one chunk, when it is time."""
        if self._wanted and time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + 4.0
            for chunk in chunks.cut(self._blob, self._ref, [self._wanted.pop(0)]):
                self.say(chunk)


class Hog(Attacker):
    """Asks for the first chunk of its assignment sixteen times in each of many requests."""

    num_left = 300

    def __init__(self, config: CoordinatorConfig, port: int, device_id: str) -> None:
        super().__init__(config, port, device_id)
        self._ref: BlobRef | None = None

    def hear(self, message: AnyMessage) -> None:
        """Remember what can be asked for."""
        if isinstance(message, Assignment):
            self._ref = message.payload

    def attack(self) -> None:
        """Ask again."""
        if self._ref is not None and self.num_left > 0:
            self.num_left -= 1
            self.say(ChunkRequest(digest=self._ref.digest, missing=(0,) * 16))


class Babbler(Attacker):
    """Bytes that are not messages, on topics of its own and of nobody; a registration that the broker retains."""

    num_left = 500

    def attack(self) -> None:
        """Say something that means nothing."""
        if self.num_left <= 0:
            return
        rng = random.Random(self.num_left)
        self.num_left -= 1
        kind = rng.choice(("register", "status", "update", "failure", "chunk", "chunkrequest", "presence", "x" * 99))
        name = rng.choice((self.device_id, "a\0b".replace("\0", ""), "y" * 5000, "nobody"))
        topic = (
            topics.up(self.config.fleet, self.device_id, "status").replace(self.device_id, name).replace("status", kind)
        )
        self.publish(topic, rng.randbytes(rng.choice((0, 1, 50, 90_000))))
        if self.num_left == 499:
            left = Register(
                device_id=self.device_id, session_id="old", capabilities=Capabilities(**CAPABILITIES), num_examples=1
            )
            self.publish(topics.up(self.config.fleet, self.device_id, "register"), left, retain=True)


class Forger(Attacker):
    """Offers one honest board what a bad server would: a newer artifact, a batch beyond all memory, a redirect.

    Before the first round only: without signatures a board that is told of another run drops its assignment.
    """

    pause_s = 1.0

    def __init__(self, config: CoordinatorConfig, port: int, device_id: str, *, victim: str, url: str) -> None:
        super().__init__(config, port, device_id)
        self._victim = victim
        self._url = url
        self._moves = iter(range(5))

    def attack(self) -> None:
        """Say one more welcome in the coordinator's name."""
        move = next(self._moves, None)
        if move is None:
            return
        welcome = Welcome(
            run_id="another",
            device_id=self._victim,
            artifact_url=f"{self._url}/{('newer', 'redirect', 'nothing')[move % 3]}/",
            artifact_digest=f"{move}" * 64,
            arms=self.config.arms,
            batch_size=10**9 if move % 2 else 4,
            max_length=16,
        )
        self.publish(topics.down(self.config.fleet, self._victim, "welcome"), welcome, retain=move == 0)


@contextlib.contextmanager
def bad_artifacts() -> Iterator[str]:
    """An artifact server of bad manifests: of a format that is to come, behind a redirect, or not there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "newer" in self.path:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"format_version": 999}')
            elif "redirect" in self.path:
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:1/secret")
                self.end_headers()
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def half_open(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections to the artifact server that never end their request."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
                found.append(connection)
        yield found


Make = Callable[[CoordinatorConfig, int, str], Attacker]
