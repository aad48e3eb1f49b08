"""A real device takes the right assignment, and reports one that it cannot finish; as in test_agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.wire.messages import (
    AssignmentKey,
    Cancel,
    DeviceState,
    Failure,
    FailureReason,
    Register,
    Status,
    Update,
)
from tests.edge_runtime.agent.stage import DEVICE, RUN, Coordinator, StartDevice


def test_a_repeated_assignment_is_trained_once(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign()
    coordinator.assign()
    first = coordinator.wait(Update)
    coordinator.assign()
    assert coordinator.wait(Update) == first


def test_a_cancelled_assignment_is_dropped(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.say(Cancel(key=AssignmentKey(run_id=RUN, round_number=1, device_id=DEVICE, attempt=1), detail="closed"))
    assert "closed" in coordinator.wait(Status, state=DeviceState.IDLE).detail
    coordinator.assign(2)
    assert coordinator.wait(Update).key.round_number == 2


def test_a_newer_assignment_supersedes(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.assign(2)
    assert coordinator.wait(Update).key.round_number == 2


def test_a_new_run_with_the_same_artifact_ends_the_work_of_the_old_one(
    coordinator: Coordinator, start_device: StartDevice
) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(5, hyper={"num_local_steps": 100_000})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.welcome(run_id="run-2")
    coordinator.assign(1, run_id="run-2")
    update = coordinator.wait(Update)
    assert (update.key.run_id, update.key.round_number) == ("run-2", 1)


def test_an_older_assignment_is_ignored(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(5, hyper={"num_local_steps": 60})
    coordinator.assign(4)
    assert coordinator.wait(Update).key.round_number == 5


def test_a_deadline_ends_the_work(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=0.8)
    failure = coordinator.wait(Failure)
    assert failure.reason == FailureReason.CANCELLED
    assert "deadline" in failure.detail
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=0.8)
    assert coordinator.wait(Failure) == failure


def test_a_repeated_assignment_renews_the_deadline(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=60.0)
    coordinator.wait(Status, state=DeviceState.TRAINING)
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=2.0)
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=60.0)
    assert coordinator.silence(Failure, 3.0)
    coordinator.assign(hyper={"num_local_steps": 100_000}, deadline_s=0.1)
    assert "deadline" in coordinator.wait(Failure).detail


def test_a_divergence_is_told(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.full = {name: np.full_like(values, 1e30) for name, values in coordinator.full.items()}
    coordinator.assign()
    assert coordinator.wait(Failure).reason == FailureReason.DIVERGED


def test_an_adapter_that_does_not_fit_is_told(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.full["classifier.weight"] = np.zeros((7, 7), np.float32)
    coordinator.assign()
    failure = coordinator.wait(Failure)
    assert failure.reason == FailureReason.INTERNAL
    assert "classifier.weight" in failure.detail


def test_an_arm_that_does_not_fit_is_refused(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start_device()
    coordinator.bring_in()
    runner: Any = device.agent._runner
    monkeypatch.setattr(runner.methods.of_run(device.agent._welcome).engines, "_limit", 1_000_000)
    coordinator.assign()
    failure = coordinator.wait(Failure)
    assert failure.reason == FailureReason.ARM_INFEASIBLE
    assert "this device may use only 1 MB" in failure.detail


def test_an_artifact_that_is_not_there_yet_is_awaited(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path
) -> None:
    (artifact_dir / "manifest.json").rename(artifact_dir / "later")
    start_device()
    coordinator.wait(Register)
    coordinator.welcome()
    coordinator.assign()
    assert coordinator.wait(Failure).reason == FailureReason.ARTIFACT_UNREACHABLE
    (artifact_dir / "later").rename(artifact_dir / "manifest.json")
    coordinator.assign(attempt=2)
    coordinator.wait(Update, attempt=2)


def test_an_assignment_of_an_unknown_run_leads_to_a_registration(
    coordinator: Coordinator, start_device: StartDevice
) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(run_id="another", hyper={"num_local_steps": 100_000})
    assert coordinator.wait(Register).device_id == DEVICE
    coordinator.welcome()
    assert coordinator.wait(Status).state == DeviceState.IDLE, "what another run asks for is not trained"
