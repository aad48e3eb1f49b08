"""The coordinator over a real broker, with devices that follow a script."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from broker_server.errors import RunFailedError, StateInUseError, StoreError
from broker_server.serving.storage.events import (
    EventReader,
    RoundFinished,
    RoundStarted,
    RunFinished,
    Started,
    UpdateAccepted,
)
from broker_server.serving.storage.records import DeviceRecord
from broker_server.serving.storage.store import Store
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.link.errors import BrokerUnreachableError
from edge_runtime.wire import topics
from edge_runtime.wire.messages import (
    Assignment,
    Cancel,
    DeviceState,
    FailureReason,
    Finished,
    Hello,
    Presence,
    Status,
    Verdict,
    Welcome,
    encode_message,
)
from tests.broker_server import fleet
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.replies import lora_of
from tests.waiting import wait_until

Coordinate = Callable[[Path], Coordination]


def devices_of(run_dir: Path, round_number: int) -> dict[str, DeviceRecord]:
    records = Store.open(run_dir).load_round_records()
    return {device.device_id: device for device in records[round_number].devices}


def test_whole_run(any_broker: Broker, tmp_path: Path, coordinate: Coordinate) -> None:
    config = fleet.config(tmp_path, any_broker.url)
    running = coordinate(tmp_path)
    with Device(any_broker.url, "a") as a, Device(any_broker.url, "b") as b:
        running.finish()
        wait_until(lambda: bool(a.heard(Finished)) and bool(b.heard(Finished)))
    for device in (a, b):
        (welcome,) = device.heard(Welcome)[:1]
        assert isinstance(welcome, Welcome)
        assert welcome.artifact_url == f"http://127.0.0.1:1/{config.artifact_digest}/"
        assert device.verdicts() == {1: True, 2: True}
    records = Store.open(tmp_path).load_round_records()
    assert [record.round_number for record in records] == [0, 1, 2]
    assert [[d.outcome for d in record.devices] for record in records] == [[], ["accepted"] * 2, ["accepted"] * 2]
    assert records[2].elapsed_s == pytest.approx(records[1].seconds + records[2].seconds)
    assert {d.sparsity > 0 for d in records[1].devices} == {True, False}


def test_what_a_run_leaves_behind(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    config = fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b"):
        running.finish()
    for round_number in range(3):
        with safe_open(tmp_path / f"adapters/round-{round_number:04d}.safetensors", "numpy") as file:
            assert file.metadata() == {
                "artifact_digest": config.artifact_digest,
                "rank": "3",
                "lora_scaling": "2.0",
                "round_number": str(round_number),
            }
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapters/peft" / name).is_file()
    assert (tmp_path / "importance.safetensors").is_file()
    assert sorted(p.name for p in (tmp_path / "updates/2").iterdir()) == ["a.safetensors", "b.safetensors"]
    events = list(EventReader(tmp_path / "events.jsonl").new_events())
    kinds = [type(event) for event in events]
    assert kinds[0] is Started
    assert kinds[-1] is RunFinished or kinds.count(RunFinished) == 1
    assert [kinds.count(kind) for kind in (RoundStarted, UpdateAccepted, RoundFinished)] == [2, 4, 3]


def test_dense_tensor_of_the_new_adapter_is_the_average_of_the_updates(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b"):
        running.finish()
    first, last = (decode_tensors((tmp_path / f"adapters/round-000{i}.safetensors").read_bytes()) for i in (0, 2))
    np.testing.assert_allclose(last["classifier.weight"], first["classifier.weight"] + 0.02, atol=1e-6)


# ---- devices that fail -----------------------------------------------------------------------------------------------


def test_device_that_dies_costs_the_round_only_its_update(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", lambda _a, _b: None) as b:
        wait_until(lambda: bool(b.heard(Assignment)))
        b.leave()
        running.finish()
    assert devices_of(tmp_path, 1)["b"].outcome == "lost"
    assert sorted(devices_of(tmp_path, 2)) == ["a"]


def test_device_that_is_too_slow_is_cancelled(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url, round_deadline_s=2.0)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", lambda _a, _b: None) as b:
        running.finish()
    assert [m.key.round_number for m in dict.fromkeys(b.heard(Cancel)) if isinstance(m, Cancel)] == [1, 2]
    assert devices_of(tmp_path, 1)["b"].outcome == "timed_out"


def test_arm_that_is_too_large_is_followed_by_a_cheaper_one(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    def small(assignment: Assignment, blob: bytes) -> bytes | FailureReason:
        is_small = lora_of(assignment).arm.pruning_ratio > 0
        return fleet.train(assignment, blob) if is_small else FailureReason.ARM_INFEASIBLE

    fleet.config(tmp_path, broker.url, num_devices=1)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", small) as a:
        running.finish()
    asked = [(m.key.round_number, m.key.attempt, lora_of(m).arm.rank) for m in a.assignments()]
    assert asked == [(1, 1, 3), (1, 2, 2), (2, 1, 2)]
    assert devices_of(tmp_path, 1)["a"].attempt == 2


def test_rounds_without_updates_end_the_run(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    config = fleet.config(tmp_path, broker.url, num_devices=1)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=9))
    (tmp_path / "config.toml").write_text(longer.to_toml())
    running = coordinate(tmp_path)
    with (
        Device(broker.url, "a", fleet.refuse(FailureReason.DIVERGED)),
        pytest.raises(RunFailedError, match=r"training diverged in round 3: lower the .* a: failed \(diverged: by"),
    ):
        running.finish()


def test_no_device_at_all(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url, registration_timeout_s=1.0)
    with pytest.raises(RunFailedError, match="no device for round 1 within 1 s"):
        coordinate(tmp_path).finish()


# ---- updates that cannot be right ------------------------------------------------------------------------------------


def not_finite(_assignment: Assignment, blob: bytes) -> bytes:
    return encode_tensors({k: np.full_like(v, np.nan) for k, v in decode_tensors(blob).items()})


def wrong_shape(_assignment: Assignment, blob: bytes) -> bytes:
    return encode_tensors({k: v[..., :1] for k, v in decode_tensors(blob).items()})


def too_large(_assignment: Assignment, _blob: bytes) -> bytes:
    return bytes(10_000_000)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (not_finite, "not finite"),
        (wrong_shape, "shape"),
        (lambda _a, _b: b"no tensors at all", "header"),
        (too_large, "at most"),
    ],
    ids=["not finite", "wrong shape", "garbage", "too large"],
)
def test_update_that_does_not_fit_is_rejected(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, script: fleet.Script, said: str
) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", script) as b:
        running.finish()
    assert b.verdicts() == {1: False, 2: False}
    first = b.heard(Verdict)[0]
    assert isinstance(first, Verdict)
    assert said in first.detail
    assert devices_of(tmp_path, 1)["b"].outcome == "rejected"
    assert not (tmp_path / "updates/1/b.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"train_loss": float("nan")},
        {"num_examples": 10**18},
        {"measurements": msgspec.structs.replace(fleet.measurements(), train_s=1e308)},
    ],
    ids=["loss", "examples", "time"],
)
def test_update_with_a_number_out_of_range_is_answered_and_does_not_count(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, changes: dict[str, object]
) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", changes=changes) as b:
        running.finish()
    assert b.verdicts() == {1: False, 2: False}
    assert devices_of(tmp_path, 1)["b"].outcome == "rejected"
    assert "Expected" in devices_of(tmp_path, 1)["b"].detail


def test_update_of_another_run_is_answered_and_does_not_count(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url, round_deadline_s=3.0)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", changes={"run_id": "last-week"}) as b:
        running.finish()
    first = b.heard(Verdict)[0]
    assert isinstance(first, Verdict)
    assert (first.key.run_id, first.accepted) == ("last-week", False)
    assert "'last-week'" in first.detail
    assert devices_of(tmp_path, 1)["b"].outcome == "timed_out"


def test_assignment_lost_on_the_way_is_sent_again(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    """A device that says it is idle although an assignment is open cannot have received it."""
    fleet.config(tmp_path, broker.url, num_devices=1)
    running = coordinate(tmp_path)
    lost: list[bool] = []

    def script(assignment: Assignment, blob: bytes) -> bytes | None:
        if not lost:
            lost.append(True)
            return None
        return fleet.train(assignment, blob)

    with Device(broker.url, "a", script) as a:
        wait_until(lambda: bool(lost))
        a.say(Status(device_id="a", session_id="s", state=DeviceState.IDLE))
        running.finish()
        sent = [m.key.round_number for m in a.heard(Assignment) if isinstance(m, Assignment)]
    assert sent.count(1) >= 2
    assert sent[-1] == 2
    assert devices_of(tmp_path, 1)["a"].outcome == "accepted"


def test_update_that_was_made_again_is_pulled_anew(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    """A device that lost its disk while its update was on the way trains again; the first one cannot be pulled."""
    fleet.config(tmp_path, broker.url, num_devices=1)
    running = coordinate(tmp_path)

    def forgetful(assignment: Assignment, blob: bytes) -> bytes:
        lost = fleet.train(assignment, fleet.train(assignment, blob))
        b.say(b.update(assignment, lost))  # announced, never offered
        return fleet.train(assignment, blob)

    with Device(broker.url, "b", forgetful) as b:
        running.finish()
    assert b.verdicts() == {1: True, 2: True}


def test_nonsense_on_the_topics_does_no_harm(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a") as a, Device(broker.url, "b") as b:
        for payload in (
            b"",
            b"\x00",
            b"\xff" * 1000,
            b"\x81\xa4kind\xa6update",
            encode_message(Hello(run_id="", session_id="")),
        ):
            a.shout(topics.up(fleet.FLEET, "a", "update"), payload)
            a.shout(topics.up(fleet.FLEET, "stranger", "register"), payload)
        forged = Presence(device_id="b", session_id="anything", online=False)
        a.say(forged)  # under a's topic
        b.say(Presence(device_id="b", session_id="an-old-session", online=False))
        running.finish()
    assert devices_of(tmp_path, 1)["b"].outcome == "accepted"
    assert sorted(devices_of(tmp_path, 2)) == ["a", "b"]


def test_status_of_a_device_that_never_registered_is_answered_with_hello(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a") as a:
        wait_until(lambda: bool(a.heard(Welcome)))
        hellos = len(a.heard(Hello))
        a.say(Status(device_id="ghost", session_id="s", state=DeviceState.IDLE), topic_of="ghost")
        a.say(Status(device_id="a", session_id="s", state=DeviceState.IDLE))
        time.sleep(0.5)
        assert len(a.heard(Hello)) == hellos
        with Device(broker.url, "b"):
            running.finish()


# ---- restarts --------------------------------------------------------------------------------------------------------


def test_who_asks_whether_there_is_a_coordinator_is_answered(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    """A doctor asks so, beside a device that may be at work."""
    fleet.config(tmp_path, broker.url)
    coordination = coordinate(tmp_path)
    with Device(broker.url, "a") as a:
        wait_until(lambda: bool(a.heard(Welcome)))
        before = len(a.heard(Hello))
        a.say(Presence(device_id="a", session_id="doctor", online=True))
        wait_until(lambda: len(a.heard(Hello)) > before)
        with Device(broker.url, "b"):
            coordination.finish()
    assert [devices_of(tmp_path, number)["a"].outcome for number in (1, 2)] == ["accepted"] * 2, "it is not put out"


def test_finished_run_is_not_run_again(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b"):
        running.finish()
    before = (tmp_path / "adapters/round-0002.safetensors").read_bytes()
    coordinate(tmp_path).finish(timeout_s=20)
    assert len(Store.open(tmp_path).load_round_records()) == 3
    assert (tmp_path / "adapters/round-0002.safetensors").read_bytes() == before


def test_broker_that_dies_and_comes_back(real_broker: Broker, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, real_broker.url)
    held = True
    running = coordinate(tmp_path)

    def patient(assignment: Assignment, blob: bytes) -> bytes | None:
        return None if held else fleet.train(assignment, blob)

    with Device(real_broker.url, "a") as a, Device(real_broker.url, "b", patient) as b:
        wait_until(lambda: bool(a.heard(Verdict)) and bool(b.heard(Assignment)))
        real_broker.kill()
        held = False
        real_broker.start()
        running.finish(timeout_s=90)
        wait_until(lambda: 2 in a.verdicts() and 2 in b.verdicts())
    assert [d.outcome for d in devices_of(tmp_path, 1).values()] == ["accepted", "accepted"]
    assert a.verdicts() == b.verdicts() == {1: True, 2: True}


def test_one_coordinator_for_one_run(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    wait_until((tmp_path / "adapters/round-0000.safetensors").exists)
    with pytest.raises(StateInUseError, match="another coordinator"):
        coordinate(tmp_path).finish()
    with Device(broker.url, "a"), Device(broker.url, "b"):
        running.finish()


def test_no_broker(tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, "mqtt://127.0.0.1:1")
    with pytest.raises(BrokerUnreachableError):
        coordinate(tmp_path).finish()


def test_artifact_of_another_digest(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    config = fleet.config(tmp_path, broker.url)
    other = dataclasses.replace(config, artifact_digest="0" * 64)
    (tmp_path / "artifacts" / config.artifact_digest).rename(tmp_path / "artifacts" / other.artifact_digest)
    (tmp_path / "config.toml").write_text(other.to_toml())
    with pytest.raises(StoreError, match="but the run trains 000000000000"):
        coordinate(tmp_path).finish()
