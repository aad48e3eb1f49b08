"""Devices that train nothing: the real protocol over real connections, many in one process, for ``benchmarks.fleet``.

Each has a connection of its own to the broker. It registers, sends heartbeats, pulls what an assignment starts from,
announces an update that was made beforehand, answers requests for its chunks, and says again what nobody answered.
"""

from __future__ import annotations

import random
import selectors
import time
from collections import Counter
from typing import Final

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.link.transfers import WINDOW
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import (
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

HEARTBEAT_S: Final = 15.0
SAY_AGAIN_S: Final = 5.0
"""As a device's outbox: silence after which an update is announced again; doubles up to the next."""
LONGEST_SAY_AGAIN_S: Final = 60.0
KEEPALIVE_S: Final = 60
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
            layout = AdapterLayout.of(self._manifest, work.final_plan, work.arm.rank)
            shapes = layout.trained(work.hyper_parameters.trainable).shapes
            rng = np.random.default_rng(0)
            tensors = {name: rng.normal(scale=SCALE, size=shape).astype(np.float32) for name, shape in shapes.items()}
            blob = encode_payload(Payload(adapter=tensors))
            self._made[key] = chunks.describe(blob), blob
        return self._made[key]


class ThinDevice:
    """One of them."""

    def __init__(self, device_id: str, fleet: str, port: int, updates: Updates, counts: Counter[str]) -> None:
        """Connect.

        Args:
            device_id: its name.
            fleet: of the coordinator.
            port: of the broker, on this machine.
            updates: where updates come from.
            counts: of messages and verdicts, of all devices together.
        """
        self.device_id = device_id
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
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=device_id, protocol=MQTTProtocolVersion.MQTTv5)
        client.max_queued_messages_set(0)
        client.on_connect = lambda *_: client.subscribe([(t, 1) for t in topics.device_subscriptions(fleet, device_id)])
        client.on_subscribe = lambda *_: self._register()
        client.on_message = lambda _client, _data, message: self._take(decode_message(message.payload))
        will = Presence(device_id=device_id, session_id=self._session_id, online=False)
        client.will_set(topics.up(fleet, device_id, kind_of(will)), encode_message(will), qos=1)
        client.connect("127.0.0.1", port, KEEPALIVE_S)
        self.client = client

    def keep_up(self, now: float) -> None:
        """Write what waits, and say what is due."""
        while self.client.want_write():
            if self.client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
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
        self.client.publish(topic, encode_message(message), qos=1)

    def _register(self) -> None:
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
                self._register()
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


class Crowd:
    """Many thin devices, served in one thread."""

    def __init__(self, num_devices: int, fleet: str, port: int, manifest: Manifest) -> None:
        self.counts: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self.devices: list[ThinDevice] = []
        self._looked_at = 0.0
        updates = Updates(manifest)
        for number in range(num_devices):
            device = ThinDevice(f"thin-{number:05}", fleet, port, updates, self.counts)
            self.devices.append(device)
            self._selector.register(device.client.socket(), selectors.EVENT_READ, device)
            if number % 50 == 49:
                self.serve(0.02)

    def serve(self, seconds: float) -> None:
        """Read, answer and say what is due, for some time."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for key, _ in self._selector.select(0.02):
                key.data.client.loop_read()
                if key.data.client.socket() is None:
                    self.counts["connections_lost"] += 1
                    self._selector.unregister(key.fileobj)
            for device in self.devices:
                if device.client.socket() is not None:
                    device.keep_up(now)
            if now > self._looked_at + KEEPALIVE_S / 4:
                self._looked_at = now
                for device in self.devices:
                    device.client.loop_misc()

    def close(self) -> None:
        """End all connections."""
        for device in self.devices:
            device.client.disconnect()


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
