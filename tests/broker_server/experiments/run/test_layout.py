"""Run directories: what may be started where, and what a failure leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from broker_server.errors import ChildFailedError, RunExistsError, StateInUseError, StoreError
from broker_server.experiments.run.layout import JobState, RunDirectory, check_free, created, default_root, held
from edge_runtime.errors import ExitCode
from edge_runtime.system.files import DiskFullError

STATE = JobState(run_id="run-1", created_at=1.0)


def _fail_inside(root: Path, error: Exception) -> None:
    with created(root) as directory:
        directory.save_state(STATE)
        (root / "logs").mkdir()
        (root / "logs" / "export.log").write_text("trace")
        (root / "data").mkdir()
        raise error


def test_default_names_count_up(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        root = default_root(tmp_path, resume=False)
        root.mkdir()
        names.append(root.name)

    assert names == ["fedspine-run", "fedspine-run-2", "fedspine-run-3"]
    assert default_root(tmp_path, resume=True).name == "fedspine-run-3"


def test_without_a_run_there_is_none_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunExistsError, match="no run to resume"):
        default_root(tmp_path, resume=True)
    with pytest.raises(RunExistsError, match="holds no run to resume"):
        RunDirectory(tmp_path / "none").load_state()


def test_a_directory_with_a_run_says_to_resume(tmp_path: Path) -> None:
    RunDirectory(tmp_path).save_state(STATE)

    with pytest.raises(RunExistsError, match="--resume"):
        check_free(tmp_path)


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(RunExistsError, match="not an empty directory"), created(tmp_path):
        pytest.fail("it was taken")
    assert (tmp_path / "thesis.tex").exists()


def test_a_failure_leaves_no_trace(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with pytest.raises(ValueError, match="no"):
        _fail_inside(root, ValueError("no"))

    assert not root.exists()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        _fail_inside(tmp_path, ValueError("no"))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "interrupted"])
def test_logs_that_were_there_stay(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "logs" / "mine").mkdir(parents=True)
    (tmp_path / "logs" / "mine" / "years.log").write_text("of work")

    with pytest.raises(type(error)), created(tmp_path) as directory:
        _fail_with_a_log(directory, error)

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "logs",
        "logs/mine",
        "logs/mine/years.log",
    ]


def _fail_with_a_log(directory: RunDirectory, error: BaseException) -> None:
    directory.save_state(STATE)
    (directory.logs / "export.log").write_text("trace")
    raise error


def test_folders_above_that_were_made_go_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        _fail_inside(tmp_path / "a" / "b", ValueError("no"))

    assert list(tmp_path.iterdir()) == []


def test_logs_stay_where_they_say_more_than_the_error(tmp_path: Path) -> None:
    root = tmp_path / "run"
    log = root / "logs" / "export.log"
    with pytest.raises(ChildFailedError):
        _fail_inside(root, ChildFailedError("export: ended", ExitCode.RUN_FAILED, log))

    assert [path.name for path in root.iterdir()] == ["logs"]
    assert log.read_text() == "trace"
    check_free(root)


def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError):
        _fail_inside(tmp_path / "run", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    with held(RunDirectory(tmp_path)), pytest.raises(StateInUseError), held(RunDirectory(tmp_path)):
        pytest.fail("it was held twice")


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")

    with pytest.raises(StoreError, match="damaged"):
        RunDirectory(tmp_path).load_state()


def test_the_state_survives_its_file(tmp_path: Path) -> None:
    state = JobState(run_id="r", created_at=2.5, artifact_digest="ab", done=("prepare",), steps={"prepare": 1.5})
    RunDirectory(tmp_path).save_state(state)

    assert RunDirectory(tmp_path).load_state() == state


def test_a_state_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    RunDirectory(tmp_path).job_file.mkdir()
    with pytest.raises(StoreError, match=r"job\.json cannot be read"):
        RunDirectory(tmp_path).load_state()
