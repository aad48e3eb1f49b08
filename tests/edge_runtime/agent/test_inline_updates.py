"""A real device whose work makes few bytes: they are in its update, before and after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.formats.head import Head
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import decode_head, encode_head
from edge_runtime.wire.messages import Assignment, ChunkRequest, DeviceState, Presence, Register, Status, Update
from edge_runtime.wire.work import ProbeWork
from tests.edge_runtime.agent.stage import Coordinator, StartDevice


def ask(coordinator: Coordinator) -> Assignment:
    manifest = coordinator.artifact.manifest
    head = Head.of(manifest)
    weight = np.zeros((head.num_classes, head.num_features), np.float32)
    work = ProbeWork(plan=Plan.full(manifest).packed, form="softmax", batch_size=4, max_length=16, num_steps=5)
    blob = encode_head(head, {head.weight: weight, head.bias: weight[:, 0]})
    return coordinator.assign(work=work, payload=coordinator.offer(blob))


def test_few_bytes_are_announced_until_the_verdict_over_a_restart(
    coordinator: Coordinator, start_device: StartDevice, tmp_path: Path
) -> None:
    device = start_device()
    coordinator.bring_in(work="probe")
    assignment = ask(coordinator)
    first = coordinator.wait(Update)
    head = Head.of(coordinator.artifact.manifest)
    assert decode_head(first.inline, head)[head.weight].any()
    assert first.blob is None
    assert first.measurements.bytes_up >= len(first.inline)
    assert [path.suffix for path in (tmp_path / "state/outbox").iterdir()] == [".update"]

    device.crash()
    coordinator.wait(Presence, online=False)
    start_device()
    coordinator.wait(Register)
    coordinator.welcome(work="probe")
    assert coordinator.wait(Update) == first
    coordinator.say(assignment)
    assert coordinator.wait(Update) == first, "what was done is not done again"
    coordinator.verdict(first)
    coordinator.wait(Status, state=DeviceState.IDLE)
    assert not list((tmp_path / "state/outbox").iterdir())
    assert coordinator.silence(Update, 0.3)


def test_a_request_for_bytes_that_are_in_the_update_is_passed_over(
    coordinator: Coordinator, start_device: StartDevice, caplog: pytest.LogCaptureFixture
) -> None:
    start_device()
    coordinator.bring_in(work="probe")
    ask(coordinator)
    update = coordinator.wait(Update)
    coordinator.say(ChunkRequest(digest="ab" * 32, missing=(0,)))
    coordinator.verdict(update)
    coordinator.wait(Status, state=DeviceState.IDLE)
    assert "could not be handled" not in caplog.text
