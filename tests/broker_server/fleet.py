"""Devices that follow a script instead of training: the real protocol over a real broker, faults on request."""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from broker_server.config import CoordinatorConfig
from broker_server.emulation.fleet import Fleet
from broker_server.emulation.step_times import STEP_TIMES_FILE, write_step_times
from broker_server.experiments.run.settings import EMULATION_FILE
from broker_server.methods.training import TrainingConfig
from edge_runtime.bounds import limits
from edge_runtime.formats import names
from edge_runtime.formats.adapter import target_indices
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.link.inbox import Connected, Received
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.measures import Measurements
from edge_runtime.wire.messages import (
    AnyMessage,
    Assignment,
    AssignmentKey,
    Cancel,
    Failure,
    FailureReason,
    Finished,
    Hello,
    Presence,
    Register,
    Update,
    Verdict,
    Welcome,
    decode_message,
    encode_message,
    kind_of,
)
from tests.broker_server import tiny
from tests.broker_server.links import open_link
from tests.broker_server.step_times import step_times
from tests.replies import lora_of, payload_of

FLEET, RUN = "test", "run-1"
SAY_AGAIN_S = 0.3
PATIENT_S = 120.0
"""Longer than any test lasts: where nothing is to time out, nothing does on a busy machine."""


def config(run_dir: Path, url: str, **changes: object) -> CoordinatorConfig:
    """A run of two rounds on the tiny model, without evaluation."""
    digest = tiny.write_artifact(run_dir / "artifacts").digest
    base = CoordinatorConfig(
        run_id=RUN,
        fleet=FLEET,
        broker_url=url,
        artifact_url="http://127.0.0.1:1/",
        artifact_digest=digest,
        num_devices=2,
        training=TrainingConfig(num_rounds=2, num_local_steps=1, batch_size=2, max_length=8),
        arms=LORA_AXES.parse("0.0:3,0.5:2"),
        scheduler="fixed",
        registration_timeout_s=PATIENT_S,
        round_deadline_s=PATIENT_S,
        rejoin_s=1.0,
    )
    chosen = dataclasses.replace(base, **changes)  # type: ignore[arg-type]
    (run_dir / "config.toml").write_text(chosen.to_toml(), encoding="utf-8")
    return chosen


def measurements() -> Measurements:
    return Measurements(
        train_s=1.0,
        step_s_p50=0.1,
        step_s_p95=0.2,
        fetch_s=0.0,
        prepare_s=0.0,
        evaluate_s=0.0,
        peak_rss_bytes=1000,
        bytes_up=10,
        bytes_down=20,
    )


def train(assignment: Assignment, blob: bytes) -> bytes:
    """Trained by a fixed rule: what it started from plus a hundredth, so that results can be computed by hand."""
    del assignment
    return encode_tensors({name: value + np.float32(0.01) for name, value in decode_tensors(blob).items()})


def train_and_score(assignment: Assignment, blob: bytes) -> bytes:
    """As :func:`train`, pruned as was asked, with scores: unit ``u`` of a group is worth ``1 + u``, of any device."""
    manifest, work = tiny.manifest(), lora_of(assignment)
    start, final = work.plan.open(manifest), work.final_plan.open(manifest)
    trained = decode_payload(train(assignment, blob)).adapter
    for target in manifest.targets:
        before, after = target_indices(target, start), target_indices(target, final)
        if before[0] is not None and after[0] is not None:
            name = names.lora_b(target.module)
            trained[name] = trained[name][np.searchsorted(before[0], after[0])]
        if before[1] is not None and after[1] is not None:
            name = names.lora_a(target.module)
            trained[name] = trained[name][:, np.searchsorted(before[1], after[1])]
    scores = {key: (1.0 + units).astype(np.float32) for key, units in final.units.items()}
    return encode_payload(Payload(adapter=trained, importance=scores))


def emulate(run_dir: Path, emulated: Fleet) -> None:
    """Write the files of an emulated fleet: a step takes a second, whatever the arm."""
    times = step_times(pruning_ratio=(0.0,), rank=(1,), step_s=(1.0,))
    (run_dir / EMULATION_FILE).write_text(emulated.to_toml(), encoding="utf-8")
    write_step_times(run_dir / STEP_TIMES_FILE, times)


def refuse(reason: FailureReason) -> Callable[[Assignment, bytes], FailureReason]:
    return lambda _assignment, _blob: reason


Script = Callable[[Assignment, bytes], bytes | FailureReason | None]
"""Turns an assignment into a device's answer: the bytes of its update, a refusal, or nothing at all."""


class Device:
    """One scripted device; runs in a thread of its own between ``with`` and its end."""

    def __init__(
        self, url: str, device_id: str, script: Script = train, changes: Mapping[str, object] | None = None
    ) -> None:
        self.device_id = device_id
        self.script = script
        self.changes = changes or {}
        self.most_inline = limits.MAX_INLINE_BYTES
        self.received: list[AnyMessage] = []
        self._unanswered: dict[AssignmentKey, Update] = {}
        self._pulled: Assignment | None = None
        """Its payload is asked for."""
        self._say_again_at = 0.0
        self._session_id = f"session-{random.random()}"
        will = Presence(device_id=device_id, session_id=self._session_id, online=False, detail="will")
        self._link = open_link(url)(
            client_id=device_id,
            subscriptions=topics.device_subscriptions(FLEET, device_id),
            will=(topics.up(FLEET, device_id, kind_of(will)), encode_message(will)),
            max_message_bytes=limits.MAX_MESSAGE_BYTES,
            rng=random.Random(device_id),
        )
        self._transfers = Transfers(lambda _, message: self.say(message), time.monotonic)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._link.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Go, with a good-bye."""
        self._stop.set()
        self._thread.join(5)
        goodbye = self._goodbye()
        self._link.close((topics.up(FLEET, self.device_id, kind_of(goodbye)), encode_message(goodbye)))

    def say(self, message: AnyMessage, *, topic_of: str | None = None) -> None:
        """Publish a message, under one's own topic or that of another device."""
        self.shout(topics.up(FLEET, topic_of or self.device_id, kind_of(message)), encode_message(message))

    def shout(self, topic: str, payload: bytes) -> None:
        """Publish any bytes."""
        self._link.publish(topic, payload)

    def heard(self, kind: type[AnyMessage]) -> list[AnyMessage]:
        """Messages of a kind, in order."""
        return [message for message in self.received if isinstance(message, kind)]

    def assignments(self) -> list[Assignment]:
        """Each once: one that is open is sent again to a device that registers again, which a greeting asks for."""
        return list({message.key: message for message in self.received if isinstance(message, Assignment)}.values())

    def verdicts(self) -> dict[int, bool]:
        """By round: an update that is announced again gets its verdict again."""
        return {message.key.round_number: message.accepted for message in self.received if isinstance(message, Verdict)}

    def register(self) -> None:
        """Say what it is."""
        self.say(
            Register(
                device_id=self.device_id,
                session_id=self._session_id,
                capabilities=tiny.capabilities(),
                num_examples=10,
            )
        )

    def _goodbye(self) -> Presence:
        return Presence(device_id=self.device_id, session_id=self._session_id, online=False, detail="leaving")

    def _run(self) -> None:
        while not self._stop.is_set():
            if time.monotonic() > self._say_again_at:
                self._say_again_at = time.monotonic() + SAY_AGAIN_S
                for update in list(self._unanswered.values()):
                    self.say(update)
            self._transfers.tick()
            try:
                event = self._link.events.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(event, Connected):
                self.register()
            elif isinstance(event, Received):
                self._on_message(decode_message(event.payload))

    def _on_message(self, message: AnyMessage) -> None:
        if self._transfers.handle("coordinator", message):
            return
        self.received.append(message)
        match message:
            case Hello():
                self.register()
            case Assignment() if message.key not in self._unanswered:
                self._pull(message)
            case Verdict() | Cancel():
                self._answered(message.key)
            case Finished():
                self.say(self._goodbye())
                self._stop.set()
            case Welcome() | Assignment():
                pass

    def _answered(self, key: AssignmentKey) -> None:
        """Repeat an update no more: of an assignment's key, or of the one that it was announced under."""
        self._unanswered = {
            asked: update for asked, update in self._unanswered.items() if key not in {asked, update.key}
        }

    def _pull(self, assignment: Assignment) -> None:
        """Ask for an assignment's payload; one that was asked for before, perhaps the same bytes, is given up."""
        if self._pulled is not None and self._pulled.key != assignment.key:
            self._transfers.cancel(payload_of(self._pulled).digest, "coordinator")
        self._pulled = assignment
        self._transfers.expect(payload_of(assignment), "coordinator", lambda blob: self._work(assignment, blob))

    def _work(self, assignment: Assignment, blob: bytes) -> None:
        made = self.script(assignment, blob)
        if made is None:
            return
        if isinstance(made, FailureReason):
            self.say(
                Failure(
                    key=assignment.key,
                    reason=made,
                    detail="by script",
                )
            )
            return
        update = self.update(assignment, made)
        if update.blob is not None:
            self._transfers.offer(update.blob.digest, lambda: made, chunk_bytes=update.blob.chunk_bytes)
        self._unanswered[assignment.key] = update
        self._say_again_at = time.monotonic() + SAY_AGAIN_S
        self.say(update)

    def update(self, assignment: Assignment, blob: bytes) -> Update:
        """The message that announces an update, with this device's changes."""
        is_inline = len(blob) <= self.most_inline
        update = Update(
            key=assignment.key,
            blob=None if is_inline else chunks.describe(blob),
            inline=blob if is_inline else b"",
            num_examples=10,
            train_loss=1.0,
            measurements=measurements(),
        )
        of_key = {name: self.changes[name] for name in self.changes if name in AssignmentKey.__struct_fields__}
        changes = {name: value for name, value in self.changes.items() if name not in of_key}
        return msgspec.structs.replace(update, key=msgspec.structs.replace(update.key, **of_key), **changes)
