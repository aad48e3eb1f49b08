"""An assignment that is cut and comes again to another process: it goes on, with the same numbers, or begins anew."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.messages import Update
from edge_runtime.wire.work import Pruning
from tests.conftest import Disk
from tests.edge_runtime.agent.stage import EXAMPLES
from tests.edge_runtime.agent.test_assignment_runner import StopAfter, plan_of, run, start

HYPER: dict[str, Any] = {
    "num_local_steps": 12,
    "num_accumulation_steps": 2,
    "num_warmup_steps": 8,
    "importance_every_steps": 2,
    "class_balance": 0.5,
}


class Board:
    """A device's files; each :meth:`work` is a process of its own, with a runner of its own."""

    def __init__(self, artifact: Path, folder: Path) -> None:
        self.artifact = artifact
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir()
        self.data = folder / "data.jsonl"
        self.data.write_text("\n".join(EXAMPLES))

    def work(
        self, every: int = 3, stop_after: int | None = None, seed: int = 0, **hyper: Any
    ) -> tuple[Update, Payload]:
        settings = WorkSettings(data=self.data, num_holdout=4, num_threads=1, memory_limit_bytes=10**12)
        runner = AssignmentRunner(Artifact.open(self.artifact), settings, 0.0)
        manifest = runner.artifact.manifest
        plans = [plan_of(manifest, ratio) for ratio in (0.0, 0.25, 0.5)]
        prunings = (Pruning(at_step=4, plan=plans[1].packed), Pruning(at_step=8, plan=plans[2].packed))
        stop = None if stop_after is None else StopAfter(stop_after)
        checkpoints = Checkpoints(self.checkpoint, every)
        given = {**HYPER, "seed": seed, **hyper}
        return run(runner, start(manifest, plans[0]), plans[0], prunings, stop, checkpoints, **given)

    def cut(self, stop_after: int, **more: Any) -> None:
        """Work that is stopped at the given place where it asks whether it should."""
        with pytest.raises(StoppedError):
            self.work(stop_after=stop_after, **more)


@pytest.fixture
def board(tiny_bert_artifact: Path, tmp_path: Path) -> Board:
    return Board(tiny_bert_artifact, tmp_path)


def check_same(got: tuple[Update, Payload], expected: tuple[Update, Payload]) -> None:
    assert got[0].train_loss == expected[0].train_loss
    assert got[0].evaluation == expected[0].evaluation
    assert got[0].blob == expected[0].blob
    for name, value in expected[1].adapter.items():
        np.testing.assert_array_equal(got[1].adapter[name], value)
    assert got[1].importance.keys() == expected[1].importance.keys() != set()


def steps(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Steps that were made, in order."""
    return [record.args[0] for record in caplog.records if record.msg.startswith("step ")]  # type: ignore[index,misc]


def test_work_that_is_cut_three_times_ends_with_the_same_update(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first pruning, between the two, and after both; a cut costs at most the steps since a checkpoint."""
    expected = board.work(every=0)
    caplog.set_level("DEBUG")
    for stop_after in (11, 12, 13):
        board.cut(stop_after)
    got = board.work()
    check_same(got, expected)
    made = steps(caplog)
    starts = [number for before, number in zip([0, *made], made, strict=False) if number <= before]
    assert sorted(set(made)) == list(range(1, 13))
    assert starts == [4, 7, 10]
    assert len(made) <= 12 + 3 * 2


def test_the_time_of_steps_before_the_cut_is_counted(board: Board) -> None:
    board.cut(20)
    update, _ = board.work()
    measured = update.measurements
    assert measured.train_s >= 11 * measured.step_s_p50 / 2
    assert measured.evaluate_s > 0
    assert update.evaluation is not None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"num_local_steps": 11},
        {"batch_size": 3},
        {"importance_every_steps": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_assignment_begins_anew(board: Board, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    board.cut(20)
    assert list(board.checkpoint.iterdir())
    caplog.clear()
    caplog.set_level("DEBUG")
    board.work(**change)
    assert "another assignment" in caplog.text
    assert steps(caplog)[0] == 1


def test_other_data_begin_anew(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.cut(20)
    board.data.write_text("\n".join([*EXAMPLES[1:], EXAMPLES[0]]))
    caplog.clear()
    caplog.set_level("DEBUG")
    board.work()
    assert "another assignment" in caplog.text
    assert steps(caplog)[0] == 1


def test_a_damaged_checkpoint_is_dropped_with_a_warning(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    expected = board.work(every=0)
    board.cut(20)
    (file,) = board.checkpoint.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    caplog.clear()
    caplog.set_level("DEBUG")
    check_same(board.work(), expected)
    assert "work begins anew: " in caplog.text
    assert steps(caplog)[0] == 1


def test_a_part_that_a_cut_left_is_removed(board: Board) -> None:
    board.cut(20)
    part = board.checkpoint / ".assignment.checkpoint.1234.part"
    part.write_bytes(b"x")
    Checkpoints(board.checkpoint, 3)
    assert not part.exists()
    assert len(list(board.checkpoint.iterdir())) == 1


def test_without_checkpoints_none_is_written_or_read(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.cut(20)
    caplog.set_level("DEBUG")
    board.work(every=0)
    assert list(board.checkpoint.iterdir()) == []
    assert steps(caplog)[0] == 1


def test_no_checkpoint_is_written_for_the_last_step(board: Board) -> None:
    board.work(every=12)
    assert list(board.checkpoint.iterdir()) == []


def test_a_full_disk_ends_no_training(board: Board, small_disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    expected = board.work(every=0)
    disk = small_disk(4096)
    board.checkpoint = disk / "checkpoint"
    board.checkpoint.mkdir()
    check_same(board.work(every=3), expected)
    assert caplog.text.count("training goes on: disk full") == 3
    assert list(board.checkpoint.iterdir()) == []


def test_a_fault_of_the_disk_keeps_the_checkpoint_before(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    board.cut(12)
    (file,) = board.checkpoint.iterdir()
    before = file.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        board.cut(12)
    assert "training goes on: [Errno 5]" in caplog.text
    assert [path.read_bytes() for path in board.checkpoint.iterdir()] == [before]


def test_a_pause_is_no_training_time_and_is_told(board: Board, tmp_path: Path) -> None:
    """Hot at the third look and cool again at the sixth; a look at every micro-batch."""
    zone = tmp_path / "sys" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    readings = iter([50_000] * 2 + [90_000] * 3 + [50_000] * 1000)

    class Zone(Sensors):
        def read(self) -> Any:
            (zone / "temp").write_text(f"{next(readings)}\n")
            return super().read()

    pauses = Pauses(PauseLimits(max_temperature_c=80.0), Zone(tmp_path / "sys"), look_s=0.2)
    settings = WorkSettings(data=board.data, num_holdout=4, num_threads=1, memory_limit_bytes=10**12)
    runner = AssignmentRunner(Artifact.open(board.artifact), settings, 0.0)
    plan = plan_of(runner.artifact.manifest, 0.0)
    hyper = {**HYPER, "num_local_steps": 400, "importance_every_steps": 0}
    update, _ = run(runner, start(runner.artifact.manifest, plan), plan, pauses=pauses, **hyper)
    measured = update.measurements
    assert 0.6 <= measured.paused_s < 1.5
    assert pauses.paused_s == measured.paused_s
    assert measured.step_s_p95 < 0.2
    assert measured.train_s < 400 * 0.2
