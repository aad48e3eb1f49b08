"""Pruning and emulation in the coordinator, over a real broker, with devices that follow a script."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from broker_server.emulation.fleet import DeviceClass, Fleet
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.storage.store import Store
from edge_runtime.formats.ranking import from_tensors, plan_at
from edge_runtime.formats.run_directory import STATE_FILE
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import Assignment, FailureReason
from exporter.compact.source import read_plan
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.test_coordinator_restart import Process, wait_until
from tests.replies import lora_of

Coordinate = Callable[[Path], Coordination]
MANIFEST = tiny.manifest()
TRAINING = TrainingConfig(num_rounds=3, num_local_steps=4, batch_size=2, max_length=8, class_balance=0.5)
LORA = PruningConfig(importance="lora", importance_every_steps=2, importance_smoothing=0.5)


def tensors_of(path: Path) -> dict[str, bytes]:
    """Names and bits of the tensors in a file (its metadata have no fixed order)."""
    return {name: value.tobytes() for name, value in safetensors.numpy.load_file(path).items()}


def scores_after(run_dir: Path, round_number: int) -> dict[str, bytes]:
    return tensors_of(run_dir / "importance" / f"round-{round_number:04d}.safetensors")


def make_class(name: str, **changes: object) -> DeviceClass:
    given = {"count": 1, "compute_factor": 1.0, "uplink_mbit_s": 1e6, "downlink_mbit_s": 1e6} | changes
    return DeviceClass(name=name, **given)  # type: ignore[arg-type]


def test_plans_follow_the_scores_of_devices(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    fleet.config(tmp_path, broker.url, training=TRAINING, pruning=LORA, sparsity=0.5)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", fleet.train_and_score) as a, Device(broker.url, "b", fleet.train_and_score) as b:
        running.finish()
    pruned = [m for d in (a, b) for m in d.assignments() if lora_of(m).arm.pruning_ratio == 0.5]
    assert {lora_of(m).hyper_parameters.importance_every_steps for m in pruned} == {2}
    assert {lora_of(m).hyper_parameters.class_balance for m in pruned} == {0.5}
    before, last = lora_of(pruned[0]).plan, lora_of(pruned[-1]).plan
    assert before != last
    assert last.open(MANIFEST).kept(1, "channels").tolist() == [
        2,
        3,
        4,
    ]  # later units are worth more, as all devices say
    for number in range(3):  # what was sent is what the scores before the round say
        scores = from_tensors(safetensors.numpy.load_file(tmp_path / f"importance/round-{number:04d}.safetensors"))
        assert lora_of(pruned[number]).plan == plan_at(MANIFEST, scores, 0.5).packed
    current = tmp_path / "importance.safetensors"
    assert current.read_bytes() == (tmp_path / "importance/round-0003.safetensors").read_bytes()
    with safe_open(current, "numpy") as file:
        assert file.metadata() == {"scope": "layer", "protect_first": "0", "protect_last": "0"}
    records = Store.open(tmp_path).load_round_records()
    assert all(device.adapter_delta is not None for record in records[1:] for device in record.devices)
    assert all((device.completion_s or 0) > 0 for record in records[1:] for device in record.devices)


def test_compact_makes_the_plan_that_the_deploy_rounds_trained(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    deploy = dataclasses.replace(LORA, deploy_rounds=2, ramp_rounds=3, scope="global")
    fleet.config(tmp_path, broker.url, training=TRAINING, pruning=deploy, sparsity=0.4)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", fleet.train_and_score) as a, Device(broker.url, "b", fleet.train_and_score) as b:
        running.finish()
    wanted = read_plan(tmp_path, MANIFEST, 0.4).packed
    for device in (a, b):
        sent = device.assignments()
        assert [lora_of(m).arm.pruning_ratio for m in sent[1:]] == [0.4, 0.4]
        assert [lora_of(m).plan for m in sent[1:]] == [wanted, wanted]
        assert not any(lora_of(m).prunings for m in sent[1:])
    assert scores_after(tmp_path, 1) == scores_after(tmp_path, 2) == scores_after(tmp_path, 3)
    assert [record.is_deploy for record in Store.open(tmp_path).load_round_records()] == [False, False, True, True]


@pytest.mark.parametrize("crashed", [False, True], ids=["ended", "in its last round"])
def test_rounds_that_are_added_train_the_arms_again_and_end_with_deploy_rounds(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, *, crashed: bool
) -> None:
    """A deploy round stays one, also if it had begun and its record was not written yet."""
    deploy = dataclasses.replace(LORA, deploy_rounds=2, scope="global")
    config = fleet.config(tmp_path, broker.url, training=TRAINING, pruning=deploy, sparsity=0.4)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", fleet.train_and_score), Device(broker.url, "b", fleet.train_and_score):
        running.finish()
    if crashed:
        with contextlib.closing(sqlite3.connect(tmp_path / STATE_FILE)) as state, state:
            state.execute("UPDATE rounds SET record = NULL WHERE round_number = 3")
    before = {number: scores_after(tmp_path, number) for number in (1, 2, 3)}

    longer = dataclasses.replace(TRAINING, num_rounds=5)
    again = dataclasses.replace(config, training=longer, pruning=dataclasses.replace(deploy, deploy_rounds=1))
    (tmp_path / "config.toml").write_text(again.to_toml(), encoding="utf-8")
    running = coordinate(tmp_path)
    with Device(broker.url, "a", fleet.train_and_score) as a, Device(broker.url, "b", fleet.train_and_score) as b:
        running.finish()

    records = Store.open(tmp_path).load_round_records()
    assert [record.is_deploy for record in records] == [False, False, True, True, False, True]
    assert [len(record.devices) for record in records] == [0, 2, 2, 2, 2, 2]
    arms = [sorted(lora_of(m).arm.pruning_ratio for d in (a, b) for m in d.assignments()[k:][:1]) for k in (0, 1)]
    assert arms == [[0.0, 0.5], [0.4, 0.4]]
    assert [lora_of(m).hyper_parameters.learning_rate for m in a.assignments()] == [
        again.learning_rate_at(4),
        again.learning_rate_at(5),
    ]
    assert {number: scores_after(tmp_path, number) for number in (1, 2, 3)} == before
    assert before[1] == before[3] != scores_after(tmp_path, 4) == scores_after(tmp_path, 5)


def test_an_assignment_is_pruned_inside_and_its_update_is_read_under_the_last_plan(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    ramp = dataclasses.replace(LORA, ramp_rounds=2, recovery_steps=2)
    fleet.config(tmp_path, broker.url, training=TRAINING, pruning=ramp)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", fleet.train_and_score) as a, Device(broker.url, "b", fleet.train_and_score) as b:
        running.finish()
    (pruned,) = [d for d in (a, b) if lora_of(d.assignments()[0]).arm.pruning_ratio == 0.5]
    first, _, third = pruned.assignments()
    assert [p.at_step for p in lora_of(first).prunings] == [3]
    lora_of(first).final_plan.open(MANIFEST).check_within(lora_of(first).plan.open(MANIFEST))
    assert lora_of(first).final_plan != lora_of(first).plan
    assert lora_of(third).prunings == ()
    records = Store.open(tmp_path).load_round_records()
    sparsities = [d.sparsity for record in records[1:] for d in record.devices if d.device_id == pruned.device_id]
    assert sparsities == sorted(sparsities)
    assert sparsities[2] == pytest.approx(lora_of(third).plan.open(MANIFEST).sparsity(MANIFEST))
    assert all(d.outcome == "accepted" for record in records for d in record.devices)


def test_a_device_that_cannot_hold_the_ramp_plays_its_arm_at_once(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    def small(assignment: Assignment, blob: bytes) -> bytes | FailureReason:
        fits = lora_of(assignment).plan.open(MANIFEST).sparsity(MANIFEST) > 0.3
        return fleet.train_and_score(assignment, blob) if fits else FailureReason.ARM_INFEASIBLE

    ramp = dataclasses.replace(LORA, ramp_rounds=100)
    fleet.config(
        tmp_path, broker.url, training=TRAINING, pruning=ramp, num_devices=1, arms=LORA_AXES.parse("0.5:3,0.5:2")
    )
    running = coordinate(tmp_path)
    with Device(broker.url, "a", small) as a:
        running.finish()
    records = Store.open(tmp_path).load_round_records()
    assert [[d.outcome for d in record.devices] for record in records[2:]] == [["accepted"], ["accepted"]]
    assert all(lora_of(m).plan.open(MANIFEST).sparsity(MANIFEST) > 0.3 for m in a.assignments()[-2:])


# ---- the emulated fleet ----------------------------------------------------------------------------------------------


def test_a_late_device_is_timed_out_on_the_virtual_clock(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    config = fleet.config(tmp_path, broker.url, training=TRAINING, emulation_file="fleet.toml")
    classes = (make_class("fast"), make_class("slow", compute_factor=3.0))
    fleet.emulate(tmp_path, Fleet(classes=classes, members={"a": "fast", "b": "slow"}, jitter=0.0, deadline_s=10.0))
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b") as b:
        running.finish()
    assert b.verdicts() == dict.fromkeys(range(1, config.training.num_rounds + 1), False)
    records = Store.open(tmp_path).load_round_records()
    for record in records[1:]:
        fast, slow = record.devices
        assert fast.outcome == "accepted"
        assert fast.emulated_s == pytest.approx(4.0, rel=1e-3)
        assert (slow.outcome, slow.emulated_s) == ("timed_out", 10.0)
        assert slow.completion_s == pytest.approx(12.0, rel=1e-3)
        assert "emulated" in slow.detail
        assert record.emulated_s == 10.0
    assert [record.elapsed_emulated_s for record in records] == [0.0, 10.0, 20.0, 30.0]


def test_devices_that_are_not_available_or_strangers_get_no_assignment(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url, training=TRAINING, emulation_file="fleet.toml", num_devices=3)
    classes = (make_class("there"), make_class("never", availability=1e-9))
    fleet.emulate(tmp_path, Fleet(classes=classes, members={"a": "there", "b": "never"}))
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b") as b, Device(broker.url, "stranger") as stranger:
        running.finish()
    assert b.assignments() == stranger.assignments() == []
    records = Store.open(tmp_path).load_round_records()
    assert [[d.device_id for d in record.devices] for record in records] == [[], ["a"], ["a"], ["a"]]


# ---- restarts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    one = Process(tmp_path / "killed")
    yield one
    one.kill()


@pytest.mark.e2e
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    real_broker: Broker, tmp_path: Path, coordinate: Coordinate, process: Process
) -> None:
    """Importance, prunings inside assignments, the virtual clock: kill -9 in the middle of a round changes nothing."""
    pruning = dataclasses.replace(LORA, ramp_rounds=2, recovery_steps=2)
    emulated = Fleet(classes=(make_class("only"),), members={"a": "only", "b": "only"}, jitter=0.2)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        fleet.config(
            tmp_path / name,
            real_broker.url,
            training=TRAINING,
            pruning=pruning,
            emulation_file="fleet.toml",
            rejoin_s=20.0,
        )
        fleet.emulate(tmp_path / name, emulated)
    running = coordinate(tmp_path / "whole")
    with Device(real_broker.url, "a", fleet.train_and_score), Device(real_broker.url, "b", fleet.train_and_score):
        running.finish()

    may_go_on = threading.Event()

    def slow(assignment: Assignment, blob: bytes) -> bytes:
        if assignment.key.round_number == 2:
            may_go_on.wait(60)
        return fleet.train_and_score(assignment, blob)

    process.start()
    with Device(real_broker.url, "a", fleet.train_and_score) as a, Device(real_broker.url, "b", slow):
        wait_until(lambda: 2 in a.verdicts())
        process.kill()
        process.start()
        may_go_on.set()
        assert process.wait(60) == 0

    for number in range(4):
        assert scores_after(tmp_path / "whole", number) == scores_after(tmp_path / "killed", number)
        name = f"adapters/round-{number:04d}.safetensors"
        assert tensors_of(tmp_path / "whole" / name) == tensors_of(tmp_path / "killed" / name)
    records = [Store.open(tmp_path / run).load_round_records() for run in ("whole", "killed")]
    assert [r.emulated_s for r in records[0]] == [r.emulated_s for r in records[1]]
    assert np.diff([r.elapsed_emulated_s or 0.0 for r in records[1]]).min() > 0
