"""The coordinator and real devices in one process: they train for real, over a broker inside the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker_server.methods.by_name import method_of
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from edge_runtime.agent.assignment_runner import WorkContext
from edge_runtime.errors import ExitCode
from tests.broker_server.conftest import Coordination
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.whole_run import (
    NAMES,
    NUM_ROUNDS,
    NUM_STEPS,
    WAIT_S,
    WholeRun,
    artifact_server,
    wait_until,
    write_run,
)

CUT_OFF, ENDED = "cellar", "attic"
"""Devices to which something happens."""
CUT_OFF_AT, ENDED_AT = 3, NUM_STEPS + 3
"""After how many steps: in the middle of the first round, and of the second."""

Fault = Callable[[WholeRun, str, WorkContext], None]
"""Called after a step of a device, in its working thread."""
Remedy = Callable[[WholeRun], None]
"""Actions of the devices' owners meanwhile."""
Play = Callable[..., WholeRun]


@pytest.fixture
def play(
    tiny_bert_artifact: Path,
    broker: InProcess,
    coordinate: Callable[[Path], Coordination],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Play:
    """A function that plays a run of three devices to its end."""
    original = WorkContext.on_step

    def played(name: str, fault: Fault, remedy: Remedy, **changes: object) -> WholeRun:
        run = WholeRun(tmp_path / name, broker.broker)

        def on_step(context: WorkContext, step: int, loss: float) -> None:
            original(context, step, loss)
            run.steps[context.welcome.device_id].append(step)
            fault(run, context.welcome.device_id, context)

        monkeypatch.setattr(WorkContext, "on_step", on_step)
        artifacts = run.run_dir / "artifacts"
        artifacts.mkdir(parents=True)
        with artifact_server(artifacts) as url:
            write_run(run.run_dir, tiny_bert_artifact, url, broker.url, **changes)
            running = coordinate(run.run_dir)
            for device_id in NAMES:
                run.start(device_id)
            remedy(run)
            running.finish(WAIT_S)
            for board in run.boards.values():
                board.join(WAIT_S)
        return run

    return played


def nothing(*_: object) -> None:
    """Check what holds of a run without faults."""


def fail_in_the_middle(run: WholeRun, device_id: str, context: WorkContext) -> None:
    """Cut one device off in the first round, end another in the second."""
    board, num_steps = run.boards[device_id], len(run.steps[device_id])
    if (device_id, num_steps) == (CUT_OFF, CUT_OFF_AT):
        board.link.break_connection()
    elif (device_id, num_steps) == (ENDED, ENDED_AT):
        board.agent.stop(ExitCode.OK, "the board is switched off")
        assert context.stop.wait(WAIT_S)


def come_back(run: WholeRun) -> None:
    """Give the one its connection back, and start the other again."""
    reconnect(run)
    ended = run.boards[ENDED]
    ended.join(WAIT_S)
    assert ended.result is ExitCode.OK
    run.start(ENDED)


def reconnect(run: WholeRun) -> None:
    """Give a device its connection back when it has trained on without."""
    board = run.boards[CUT_OFF]
    wait_until(lambda: any((board.state / "outbox").glob("*.update")))
    assert not board.link.is_connected
    board.link.restore()


def cut_off_at_once(run: WholeRun, device_id: str, _: WorkContext) -> None:
    """Cut one device off after its first step."""
    if device_id == CUT_OFF and len(run.steps[device_id]) == 1:
        run.boards[device_id].link.break_connection()


def test_devices_that_fail_in_the_middle_change_no_bit_of_the_result(play: Play) -> None:
    smooth = play("smooth", nothing, nothing)
    rough = play("rough", fail_in_the_middle, come_back)

    for run in (smooth, rough):
        assert [board.result for board in run.boards.values()] == [ExitCode.OK] * len(NAMES)
        accepted = [{device.device_id: device.outcome for device in record.devices} for record in run.records]
        assert accepted == [{}, *[dict.fromkeys(NAMES, "accepted")] * NUM_ROUNDS]
        assert len(set(run.adapters)) == NUM_ROUNDS + 1
        assert run.losses[-1] < run.losses[0]
    assert rough.adapters == smooth.adapters
    assert rough.losses == smooth.losses
    assert rough.steps == smooth.steps == dict.fromkeys(NAMES, [*range(1, NUM_STEPS + 1)] * NUM_ROUNDS)
    assert rough.partings(CUT_OFF)[0] == "connection lost"
    assert rough.partings(ENDED)[0] == "the board is switched off"


@pytest.mark.parametrize(
    ("method", "num_steps", "options"),
    [
        ("probe", 1, {"num_local_steps": 1}),
        ("probe_softmax", 60, {"num_local_steps": 60, "learning_rate": 30.0, "weight_decay": 1e-5}),
    ],
)
def test_a_run_of_the_probe_learns_the_same_whoever_is_cut_off(
    play: Play, method: str, num_steps: int, options: dict[str, Any]
) -> None:
    training = TrainingConfig(num_rounds=1, batch_size=4, max_length=8, **options)
    arms = method_of(method).axes.parse("0.0")
    settings = {"method": method, "arms": arms, "training": training, "pruning": PruningConfig()}
    smooth = play("smooth", nothing, nothing, **settings)
    rough = play("rough", cut_off_at_once, reconnect, **settings)

    for run in (smooth, rough):
        assert [board.result for board in run.boards.values()] == [ExitCode.OK] * len(NAMES)
        assert [device.outcome for device in run.records[1].devices] == ["accepted"] * len(NAMES)
        assert run.steps == {name: [*range(1, num_steps + 1)] for name in NAMES}
    assert smooth.accuracies[-1] > smooth.accuracies[0]
    assert rough.adapters == smooth.adapters
    assert rough.partings(CUT_OFF)[0] == "connection lost"
