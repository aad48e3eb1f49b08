"""Devices that train nothing: the real protocol, thousands of devices in one thread, for ``benchmarks.fleet``.

Each has its own connection, to a broker (:class:`MqttCrowd`) or inside this process (:class:`InProcessCrowd`). It
registers, sends heartbeats, pulls the payload of an assignment, announces an update that was made beforehand, answers
requests for its chunks, and repeats unanswered messages. A device takes processor time only when it has an event.
"""

from __future__ import annotations

import abc
import contextlib
import heapq
import queue
import random
import selectors
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.mqtt_client import MqttClient
from edge_runtime.bounds import limits
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.link.in_process import InProcessBroker, InProcessLink
from edge_runtime.link.inbox import Connected, Received
from edge_runtime.link.transfers import WINDOW
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import (
    HEARTBEAT_S,
    AnyMessage,
    Assignment,
    BlobRef,
    Capabilities,
    Chunk,
    ChunkRequest,
    DeviceState,
    Hello,
    LocalEvaluation,
    Measurements,
    Presence,
    Register,
    Status,
    Update,
    Verdict,
    decode_message,
    encode_message,
    kind_of,
)
from edge_runtime.wire.work import LoraWork

SAY_AGAIN_S: Final = 5.0
"""As a device's outbox: silence after which an update is announced again; doubles up to the next."""
LONGEST_SAY_AGAIN_S: Final = 60.0
KEEPALIVE_S: Final = 60
LOOK_S: Final = 2.0
"""Longest time between two checks of a device's waiting messages."""
SCALE: Final = 1e-3
"""Standard deviation of the elements of an update."""


class Updates:
    """Updates made beforehand: one for each plan and rank, which all devices share."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._made: dict[tuple[str, int], tuple[BlobRef, bytes]] = {}

    def of(self, assignment: Assignment) -> tuple[BlobRef, bytes]:
        """Header and bytes of an update to an assignment."""
        work = assignment.work
        if not isinstance(work, LoraWork):
            msg = f"thin devices answer LoRA work, not {type(work).__name__}"
            raise TypeError(msg)
        key = (work.final_plan.digest(), work.arm.rank)
        if key not in self._made:
            layout = AdapterLayout.of(self._manifest, work.final_plan.open(self._manifest), work.arm.rank)
            shapes = layout.trained(work.hyper_parameters.trainable).shapes
            rng = np.random.default_rng(0)
            tensors = {name: rng.normal(scale=SCALE, size=shape).astype(np.float32) for name, shape in shapes.items()}
            blob = encode_payload(Payload(adapter=tensors))
            self._made[key] = chunks.describe(blob), blob
        return self._made[key]


class ThinDevice:
    """One of them; it waits for nothing."""

    def __init__(self, device_id: str, fleet: str, updates: Updates, counts: Counter[str]) -> None:
        """Prepare.

        Args:
            device_id: its name.
            fleet: of the coordinator.
            updates: where updates come from.
            counts: of messages and verdicts, of all devices together.
        """
        self.device_id = device_id
        self.publish: Callable[[str, bytes], None] = lambda _topic, _payload: None
        """To the broker; set by whoever connects it."""
        self._fleet = fleet
        self._updates = updates
        self._counts = counts
        self._session_id = f"{device_id}-{random.getrandbits(32):08x}"
        self._assignment: Assignment | None = None
        self._lacking: set[int] = set()
        self._update: Update | None = None
        self._blob: tuple[BlobRef, bytes] | None = None
        self._say_again_at, self._patience_s = 0.0, SAY_AGAIN_S
        self._beat_at = time.monotonic() + random.uniform(0, HEARTBEAT_S)  # noqa: S311 - spread over time
        self._is_ready = False
        self.accepted: list[tuple[int, int]] = []
        """Rounds and attempts of the updates that the coordinator says it has."""

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters of it."""
        return topics.device_subscriptions(self._fleet, self.device_id)

    @property
    def will(self) -> tuple[str, bytes]:
        """Return the message that the broker publishes when its connection breaks."""
        will = Presence(device_id=self.device_id, session_id=self._session_id, online=False)
        return topics.up(self._fleet, self.device_id, kind_of(will)), encode_message(will)

    def take(self, payload: bytes) -> None:
        """Deal with a message."""
        self._take(decode_message(payload))

    def keep_up(self, now: float) -> None:
        """Send the messages that are due."""
        if not self._is_ready:
            return
        if now > self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            state = DeviceState.IDLE if self._assignment is None else DeviceState.UPLOADING
            self._say(Status(device_id=self.device_id, session_id=self._session_id, state=state))
        if self._assignment is not None and now > self._say_again_at:
            if self._update is None:
                self._ask(self._assignment)
            else:
                self._announce(self._update)

    def _say(self, message: AnyMessage) -> None:
        self._counts["messages"] += 1
        topic = topics.up(self._fleet, self.device_id, kind_of(message))
        self.publish(topic, encode_message(message))

    def register(self) -> None:
        """Send its registration."""
        self._is_ready = True
        capabilities = Capabilities(
            architecture="x86_64",
            operating_system="thin",
            num_cores=1,
            num_threads=1,
            memory_bytes=1 << 30,
            memory_limit_bytes=1 << 29,
            versions={},
            matmul_gflops=1.0,
            memory_copy_gb_s=1.0,
        )
        self._say(
            Register(device_id=self.device_id, session_id=self._session_id, capabilities=capabilities, num_examples=10)
        )

    def _take(self, message: AnyMessage) -> None:
        self._counts["messages"] += 1
        match message:
            case Hello():
                self.register()
                self._patience_s, self._say_again_at = SAY_AGAIN_S, 0.0
            case Assignment():
                self._begin(message)
            case Chunk():
                self._take_chunk(message)
            case ChunkRequest():
                self._send_chunks(message)
            case Verdict():
                self._counts["accepted" if message.accepted else "rejected"] += 1
                if message.accepted:
                    self.accepted.append((message.key.round_number, message.key.attempt))
                self._assignment = self._update = None

    def _begin(self, assignment: Assignment) -> None:
        known = self._assignment
        if known is not None and known.key.round_number == assignment.key.round_number:
            return
        self._assignment, self._update = assignment, None
        self._lacking = set(range(0 if assignment.payload is None else assignment.payload.num_chunks))
        self._patience_s = SAY_AGAIN_S
        self._ask(assignment)

    def _ask(self, assignment: Assignment) -> None:
        if assignment.payload is not None:
            wanted = tuple(sorted(self._lacking)[:WINDOW])
            self._say(ChunkRequest(digest=assignment.payload.digest, missing=wanted))
            self._wait()

    def _take_chunk(self, chunk: Chunk) -> None:
        assignment = self._assignment
        if assignment is None or assignment.payload is None or self._update is not None:
            return
        if chunk.digest != assignment.payload.digest:
            return
        self._lacking.discard(chunk.index)
        if self._lacking and chunk.index % WINDOW == WINDOW - 1:
            self._ask(assignment)
        if not self._lacking:
            self._blob = self._updates.of(assignment)
            self._update = _update(assignment, self._blob[0])
            self._patience_s = SAY_AGAIN_S
            self._announce(self._update)

    def _announce(self, update: Update) -> None:
        self._say(update)
        self._wait()

    def _wait(self) -> None:
        self._say_again_at = time.monotonic() + random.uniform(self._patience_s / 2, self._patience_s)  # noqa: S311
        self._patience_s = min(LONGEST_SAY_AGAIN_S, 2 * self._patience_s)

    def _send_chunks(self, request: ChunkRequest) -> None:
        self._say_again_at = time.monotonic() + LONGEST_SAY_AGAIN_S
        if self._blob is not None and self._blob[0].digest == request.digest:
            for chunk in chunks.cut(self._blob[1], self._blob[0], request.missing[:WINDOW]):
                self._say(chunk)


class Crowd(abc.ABC):
    """Many thin devices, served in the thread that calls :meth:`serve`."""

    def __init__(self, num_devices: int, fleet: str, manifest: Manifest) -> None:
        self.counts: Counter[str] = Counter()
        updates = Updates(manifest)
        self.devices = [ThinDevice(f"thin-{n:05}", fleet, updates, self.counts) for n in range(num_devices)]
        now = time.monotonic()
        self._looks = [(now + LOOK_S * n / num_devices, n) for n in range(num_devices)]
        """Time of the next look at a device, and the device's number; a heap."""

    def serve(self, seconds: float) -> None:
        """Read, answer and send messages that are due, for some time."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self._wait(min(0.02, until - now))
            now = time.monotonic()
            while self._looks[0][0] <= now:
                number = self._looks[0][1]
                heapq.heapreplace(self._looks, (now + LOOK_S, number))
                self._keep_up(number, now)

    @abc.abstractmethod
    def close(self) -> None:
        """End all connections."""

    @abc.abstractmethod
    def _wait(self, timeout_s: float) -> None:
        """Wait for something to arrive, and deal with it."""

    @abc.abstractmethod
    def _keep_up(self, number: int, now: float) -> None:
        """Let a device send the messages that are due."""


class MqttCrowd(Crowd):
    """Each with a connection of its own to a broker on this machine."""

    def __init__(self, num_devices: int, fleet: str, port: int, manifest: Manifest) -> None:
        super().__init__(num_devices, fleet, manifest)
        self._selector = selectors.DefaultSelector()
        self._clients: list[MqttClient | None] = [None] * num_devices
        self._stuck: set[int] = set()
        """Devices whose socket took less than they had to write."""
        self._ping_at = [0.0] * num_devices
        for number, device in enumerate(self.devices):
            client = MqttClient(
                ("127.0.0.1", port),
                device.device_id,
                device.subscriptions,
                device.will,
                KEEPALIVE_S,
                on_connected=device.register,
                on_message=device.take,
            )
            device.publish = client.publish
            self._clients[number] = client
            self._selector.register(client.socket, selectors.EVENT_READ, number)
            if number % 50 == 49:
                self.serve(0.02)

    def close(self) -> None:
        """End all connections."""
        for client in self._clients:
            if client is not None:
                client.close()
        self._selector.close()

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            self._read(key.data)
        self._stuck = {number for number in self._stuck if not self._write(number)}

    def _read(self, number: int) -> None:
        client = self._clients[number]
        if client is None:
            return
        sock = client.socket
        if not client.read():
            self.counts["connections_lost"] += 1
            self._clients[number] = None
            self._selector.unregister(sock)
        elif not client.write():
            self._stuck.add(number)

    def _write(self, number: int) -> bool:
        client = self._clients[number]
        return client is None or client.write()

    def _keep_up(self, number: int, now: float) -> None:
        client = self._clients[number]
        if client is None:
            return
        self.devices[number].keep_up(now)
        if now > self._ping_at[number]:
            self._ping_at[number] = now + KEEPALIVE_S / 2
            client.ping()
        if not client.write():
            self._stuck.add(number)


class InProcessCrowd(Crowd):
    """Each with a link to a broker inside this process; the coordinator runs in another thread."""

    def __init__(self, num_devices: int, fleet: str, broker: InProcessBroker, manifest: Manifest) -> None:
        super().__init__(num_devices, fleet, manifest)
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Devices that have an event to read, once for each event."""
        self._links: list[InProcessLink] = []
        for number, device in enumerate(self.devices):
            link = broker.open_link(
                client_id=device.device_id,
                subscriptions=device.subscriptions,
                will=device.will,
                max_message_bytes=limits.MAX_MESSAGE_BYTES,
                on_event=lambda number=number: self._arrived.put(number),
            )
            device.publish = link.publish
            self._links.append(link)
            link.connect()

    def close(self) -> None:
        """End all connections."""
        for link in self._links:
            link.close()

    def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(queue.Empty):
            number = self._arrived.get(timeout=timeout_s)
            while True:
                with contextlib.suppress(queue.Empty):
                    self._take(number)
                number = self._arrived.get_nowait()

    def _take(self, number: int) -> None:
        match self._links[number].events.get_nowait():
            case Connected():
                self.devices[number].register()
            case Received(payload=payload):
                self.devices[number].take(payload)
            case _:
                self.counts["connections_lost"] += 1

    def _keep_up(self, number: int, now: float) -> None:
        self.devices[number].keep_up(now)


def _update(assignment: Assignment, ref: BlobRef) -> Update:
    return Update(
        key=assignment.key,
        blob=ref,
        num_examples=10,
        train_loss=1.0,
        measurements=Measurements(
            train_s=1.0,
            step_s_p50=0.1,
            step_s_p95=0.1,
            fetch_s=0.1,
            prepare_s=0.1,
            evaluate_s=0.1,
            peak_rss_bytes=1 << 27,
            bytes_up=ref.size_bytes,
            bytes_down=0 if assignment.payload is None else assignment.payload.size_bytes,
        ),
        evaluation=LocalEvaluation(
            num_targets=10, loss_before=2.0, loss_after=1.9, accuracy_before=0.1, accuracy_after=0.2
        ),
    )
