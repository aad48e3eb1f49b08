"""Processes of a run: none is left behind, however the end comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_server.errors import ChildFailedError
from broker_server.experiments.run.supervisor import Supervisor, last_error
from broker_server.experiments.run.tether import tethered
from edge_runtime.errors import ExitCode

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def _ends(pid: int) -> bool:
    give_up_at = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return not _is_running(pid)


def _wait_for(path: Path) -> str:
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.02)
    pytest.fail(f"{path} was not written")


def test_leaving_ends_every_process(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        children = [supervisor.start(f"sleeper-{n}", SLEEP) for n in range(3)]
        assert all(child.returncode is None for child in children)

    assert all(child.returncode == -signal.SIGTERM for child in children)


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('ready', flush=True); time.sleep(600)"
    )
    with Supervisor(tmp_path, grace_s=0.2) as supervisor:
        child = supervisor.start("stubborn", [sys.executable, "-c", code])
        _wait_for(child.log)

    assert child.returncode == -signal.SIGKILL


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    with Supervisor(tmp_path) as supervisor:
        grandchild = int(_wait_for(supervisor.start("parent", [sys.executable, "-c", code]).log))
        assert _is_running(grandchild)

    assert _ends(grandchild)


def test_what_a_process_leaves_when_it_ends_by_itself_is_ended(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("parent", [sys.executable, "-c", code])
        grandchild = int(_wait_for(child.log))
        supervisor.finish(child)

        assert _ends(grandchild)


@pytest.mark.parametrize("how", ["finished", "seen to have ended", "stopped"])
def test_an_id_that_may_be_anothers_by_now_gets_no_signal(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("short", ["true"])
        if how == "finished":
            supervisor.finish(child)
        elif how == "stopped":
            supervisor.stop([child])
        while child.returncode is None:
            time.sleep(0.02)
        signalled: list[int] = []
        monkeypatch.setattr(os, "killpg", lambda group, _: signalled.append(group))

    assert signalled == []


def test_kill_9_of_the_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from broker_server.experiments.run.tether import tethered; "
        "p = subprocess.Popen(tethered(['sleep', '600'])); print(p.pid, flush=True); time.sleep(600)"
    )
    output = tmp_path / "pid"
    with output.open("wb") as file:
        parent = subprocess.Popen(
            [sys.executable, "-c", code], stdout=file, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        )
    child = int(_wait_for(output))
    assert _is_running(child)

    parent.kill()
    parent.wait()

    assert _ends(child)


def test_a_tethered_process_whose_parent_is_gone_does_not_begin() -> None:
    command = tethered(["true"])
    command[4] = "1"  # as if the parent had died and init adopted the process

    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGKILL


def test_the_last_error_line_and_a_specific_exit_code_are_passed_on(tmp_path: Path) -> None:
    code = "import sys; print('noise\\nfedspine-edge: error: memory is short\\nmore', file=sys.stderr); sys.exit(22)"
    with (
        Supervisor(tmp_path) as supervisor,
        pytest.raises(ChildFailedError, match="device-1: memory is short") as caught,
    ):
        supervisor.finish(supervisor.start("device-1", [sys.executable, "-c", code]))

    assert caught.value.child_exit_code is ExitCode.INSUFFICIENT_MEMORY
    assert caught.value.log == tmp_path / "device-1.log"


@pytest.mark.parametrize("code", [1, 2, 99])
def test_an_unspecific_exit_code_becomes_run_failed(tmp_path: Path, code: int) -> None:
    with Supervisor(tmp_path) as supervisor, pytest.raises(ChildFailedError, match=f"exit code {code}") as caught:
        supervisor.finish(supervisor.start("x", [sys.executable, "-c", f"raise SystemExit({code})"]))

    assert caught.value.child_exit_code is ExitCode.RUN_FAILED


def test_a_program_that_does_not_exist_fails_as_a_process(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor, pytest.raises(ChildFailedError):
        supervisor.finish(supervisor.start("x", ["/does/not/exist"]))


def test_a_log_without_errors_has_no_last_error(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(b"fine\n\xff\n")

    assert last_error(tmp_path / "x.log") is None
    assert last_error(tmp_path / "none.log") is None
