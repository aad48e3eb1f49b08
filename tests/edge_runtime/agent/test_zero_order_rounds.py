"""A real device over a real broker that tunes by forward passes: it pulls once, comes back, and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner, WorkContext
from edge_runtime.agent.methods.zero_order.catching_up import NoiseRate
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.zero_order import decode_reply
from edge_runtime.wire.messages import Assignment, Presence, Register, Status, Update
from edge_runtime.wire.work import ZeroOrderWork
from tests.edge_runtime.agent.methods.zero_order_work import after, context_of, payload, rounds_of, work_of
from tests.edge_runtime.agent.stage import RUN, WAIT_S, Coordinator, StartDevice


@pytest.fixture(autouse=True)
def _slow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine a pull takes milliseconds, and which way is faster would be chance."""
    monkeypatch.setattr(NoiseRate, "replay_s", lambda *_: 0.0)


def ask(coordinator: Coordinator, round_number: int, blob: bytes, work: ZeroOrderWork) -> Assignment:
    return coordinator.assign(round_number, work=work, payload=coordinator.offer(blob))


def expected(artifact_dir: Path, tmp_path: Path, assignment: Assignment, blob: bytes) -> bytes:
    """Return the update of a device that pulls all it needs, and is never cut off."""
    settings = WorkSettings(data=tmp_path / "data.jsonl", num_holdout=4, num_threads=1, memory_limit_bytes=10**12)
    runner = AssignmentRunner(Artifact.open(artifact_dir), settings, 0.0)
    return runner.run(assignment, blob, context_of(runner))[1]


def come_back(coordinator: Coordinator, start_device: StartDevice) -> None:
    """Start a device again that crashed."""
    coordinator.wait(Presence, online=False)
    start_device()
    coordinator.wait(Register)
    coordinator.welcome(work="zero_order")


def test_a_device_that_missed_rounds_pulls_nothing_and_is_where_the_others_are(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path, tmp_path: Path
) -> None:
    device = start_device()
    coordinator.bring_in(work="zero_order")
    manifest, work = coordinator.artifact.manifest, work_of()
    blob = payload(manifest)
    ask(coordinator, 1, blob, work)
    first = coordinator.wait(Update)
    assert coordinator.asked
    assert first.blob is None
    coordinator.verdict(first)

    coordinator.asked.clear()
    device.crash()
    come_back(coordinator, start_device)
    rounds = rounds_of(work, range(1, 5))
    later = after(manifest, blob, work, rounds)
    assignment = ask(coordinator, 5, later, work_of(log=rounds))
    update = coordinator.wait(Update, round_number=5)
    assert coordinator.asked == []
    assert update.inline == expected(artifact_dir, tmp_path, assignment, later)
    coordinator.verdict(update)

    gap = rounds_of(work, (5, 7))
    last = after(manifest, later, work, rounds_of(work, (5, 6, 7)))
    assignment = ask(coordinator, 8, last, work_of(log=gap))
    update = coordinator.wait(Update, round_number=8)
    assert assignment.payload is not None
    assert set(coordinator.asked) == {assignment.payload.digest}
    assert update.inline == expected(artifact_dir, tmp_path, assignment, last)


def test_an_assignment_that_is_cut_goes_on_after_a_restart(
    coordinator: Coordinator,
    start_device: StartDevice,
    artifact_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_step = WorkContext.on_step

    def hold(context: WorkContext, step: int, loss: float) -> None:
        on_step(context, step, loss)
        if step == 30:
            context.stop.wait(WAIT_S)

    device = start_device()
    coordinator.bring_in(work="zero_order")
    manifest, work = coordinator.artifact.manifest, work_of(num_local_steps=60, num_inner=8)
    blob = payload(manifest)
    with monkeypatch.context() as patched:
        patched.setattr(WorkContext, "on_step", hold)
        assignment = ask(coordinator, 1, blob, work)
        while coordinator.wait(Status).step < 30:
            pass
        device.crash()
    with caplog.at_level("INFO", "edge_runtime.agent.methods.zero_order.steps"):
        come_back(coordinator, start_device)
        coordinator.say(assignment)
        update = coordinator.wait(Update)
    assert "going on after step" in caplog.text
    made = coordinator.pull(update)
    shape = (60, 16)
    whole = decode_reply(expected(artifact_dir, tmp_path, assignment, blob), shape)
    np.testing.assert_array_equal(decode_reply(made, shape).scalars, whole.scalars)


def test_work_of_a_run_that_begins_anew_is_not_rebuilt(coordinator: Coordinator, start_device: StartDevice) -> None:
    """Another run of the same fleet: what was kept of the first is not even looked at."""
    start_device()
    coordinator.bring_in(work="zero_order")
    manifest, work = coordinator.artifact.manifest, work_of()
    blob = payload(manifest)
    ask(coordinator, 1, blob, work)
    coordinator.verdict(coordinator.wait(Update))
    coordinator.asked.clear()
    coordinator.welcome(run_id="another", work="zero_order")
    rounds = rounds_of(work, (1, 2))
    coordinator.assign(
        3,
        run_id="another",
        work=work_of(log=rounds),
        payload=coordinator.offer(after(manifest, blob, work, rounds)),
    )
    assert coordinator.wait(Update, run_id="another").key.run_id != RUN
    assert coordinator.asked
