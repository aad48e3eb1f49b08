"""kill -9 of the coordinator's process: what it accepted counts, is not trained again, and the round goes on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.thin_devices import MqttCrowd
from broker_server.serving.storage.events import AnyEvent, EventReader
from broker_server.serving.storage.store import Store
from edge_runtime.formats.manifest import digest_of
from edge_runtime.wire.messages import Assignment, Verdict
from tests import waiting
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Broker, start_broker
from tests.broker_server.fleet import Device
from tests.replies import blob_of

pytestmark = pytest.mark.e2e


class Process:
    """``fedspine coordinate RUN`` as a real process."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "broker_server", "coordinate", str(self._run_dir)]
        with (self._run_dir / "coordinator.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self, timeout_s: float) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    one = Process(tmp_path)
    yield one
    one.kill()


wait_until = functools.partial(waiting.wait_until, timeout_s=60.0)


def wait_for(reader: EventReader, num_events: int) -> None:
    happened: list[AnyEvent] = []

    def is_enough() -> bool:
        happened.extend(reader.new_events())
        return len(happened) >= num_events

    wait_until(is_enough)


class Counting:
    """Trains by the fixed rule, counts how often each assignment was trained, and can be held back."""

    def __init__(self) -> None:
        self.trained: collections.Counter[tuple[int, int]] = collections.Counter()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, assignment: Assignment, blob: bytes) -> bytes:
        self.may_go_on.wait(60)
        self.trained[assignment.key.round_number, assignment.key.attempt] += 1
        return fleet.train(assignment, blob)


def test_killed_in_the_middle_of_a_round(any_broker: Broker, tmp_path: Path, process: Process) -> None:
    fleet.config(tmp_path, any_broker.url, rejoin_s=fleet.PATIENT_S)
    fast, slow = Counting(), Counting()
    slow.may_go_on.clear()
    process.start()
    with Device(any_broker.url, "a", fast) as a, Device(any_broker.url, "b", slow):
        wait_until(lambda: bool(a.heard(Verdict)))
        kept = (tmp_path / "updates/1/a.safetensors").read_bytes()
        process.kill()
        process.start()
        slow.may_go_on.set()
        assert process.wait(60) == 0
    store = Store.open(tmp_path)
    records = store.load_round_records()
    assert [[d.outcome for d in record.devices] for record in records] == [[], ["accepted"] * 2, ["accepted"] * 2]
    assert fast.trained == {(1, 1): 1, (2, 1): 1}
    (update,) = [one for one in store.load_updates(1) if one.key.device_id == "a"]
    assert blob_of(update).digest == digest_of(kept)


def test_device_that_died_while_the_coordinator_was_away_is_not_waited_for(
    real_broker: Broker, tmp_path: Path, process: Process
) -> None:
    fleet.config(tmp_path, real_broker.url)
    stuck = Counting()
    stuck.may_go_on.clear()
    process.start()
    with Device(real_broker.url, "a") as a, Device(real_broker.url, "b", stuck) as b:
        wait_until(lambda: bool(a.heard(Verdict)) and bool(b.heard(Assignment)))
        process.kill()
        stuck.may_go_on.set()
        b.leave()
        process.start()
        assert process.wait(60) == 0
    records = Store.open(tmp_path).load_round_records()
    assert [{d.device_id: d.outcome for d in record.devices} for record in records[1:]] == [
        {"a": "accepted", "b": "lost"},
        {"a": "accepted"},
    ]
    log = (tmp_path / "coordinator.log").read_text()
    assert "round 1 waits for b to register" in log
    assert "round 1 goes on without b" in log


def test_killed_again_and_again(real_broker: Broker, tmp_path: Path, process: Process) -> None:
    """Kills come at any moment; in the end every round has its record, and no accepted update was trained twice."""
    config = fleet.config(tmp_path, real_broker.url, rejoin_s=fleet.PATIENT_S)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=6))
    (tmp_path / "config.toml").write_text(longer.to_toml())
    scripts = {"a": Counting(), "b": Counting()}
    accepted: set[tuple[str, int]] = set()
    with Device(real_broker.url, "a", scripts["a"]) as a, Device(real_broker.url, "b", scripts["b"]) as b:
        for num_events in (3, 5, 7, 9):  # a coordinator writes about ten a round
            reader = EventReader(tmp_path / "events.jsonl", from_end=True)
            process.start()
            wait_for(reader, num_events)
            process.kill()
            accepted |= {
                (d.device_id, m.key.round_number) for d in (a, b) for m in d.heard(Verdict) if isinstance(m, Verdict)
            }
        process.start()
        assert process.wait(120) == 0
    records = Store.open(tmp_path).load_round_records()
    assert [record.round_number for record in records] == list(range(7))
    for record in records[1:]:
        assert {d.device_id: d.outcome for d in record.devices} == {"a": "accepted", "b": "accepted"}
    for device_id, round_number in accepted:
        assert scripts[device_id].trained[round_number, 1] == 1


def test_killed_while_a_crowd_sends_updates(tmp_path: Path, process: Process) -> None:
    """Updates are made durable in groups: whatever a device was told is accepted is there after kill -9, each time."""
    for broker in start_broker("mosquitto", tmp_path):
        config = fleet.config(
            tmp_path,
            broker.url,
            num_devices=60,
            rejoin_s=fleet.PATIENT_S,
            scheduler="uniform",
        )
        longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=3))
        (tmp_path / "config.toml").write_text(longer.to_toml())
        crowd = MqttCrowd(60, fleet.FLEET, broker.port, tiny.manifest())
        for num_verdicts in (20, 90):
            process.start()
            while crowd.counts["accepted"] < num_verdicts:
                crowd.serve(0.02)
            process.kill()
            kept = kept_updates(tmp_path)
            for device in crowd.devices:
                for round_number, _ in device.accepted:
                    assert (device.device_id, round_number) in kept
        process.start()
        give_up_at = time.monotonic() + 120
        while not (tmp_path / "adapters/round-0003.safetensors").exists():
            assert time.monotonic() < give_up_at
            crowd.serve(0.1)
        crowd.close()
        assert process.wait(60) == 0
    records = Store.open(tmp_path).load_round_records()
    assert [len(record.devices) for record in records[1:]] == [60] * 3
    assert {device.outcome for record in records for device in record.devices} == {"accepted"}


def kept_updates(run_dir: Path) -> set[tuple[str, int]]:
    """Devices and rounds of the updates whose rows and files a new process finds."""
    with contextlib.closing(Store.open(run_dir)) as store:
        return {(one.key.device_id, number) for number in range(1, 4) for one in store.load_updates(number)}
