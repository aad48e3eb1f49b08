from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.errors import BadNameError, StateError, StateInUseError
from edge_runtime.agent.identity import StateDirectory, new_device_id
from edge_runtime.bounds.fields import NAME
from edge_runtime.errors import ExitCode


def test_the_device_id_is_made_once(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "s") as first:
        made = first.device_id
    with StateDirectory(tmp_path / "s") as second:
        assert second.device_id == made


def test_a_given_device_id_is_kept(tmp_path: Path) -> None:
    with StateDirectory(tmp_path, "board-7"):
        pass
    with StateDirectory(tmp_path) as state:
        assert state.device_id == "board-7"


def test_a_damaged_device_id_is_replaced_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "device-id").write_bytes(b"\xff/+\n")
    with StateDirectory(tmp_path) as state:
        assert NAME.fullmatch(state.device_id)
    (line,) = caplog.messages
    assert "is not a device id" in line


@given(st.text(max_size=80))
def test_ids_made_of_any_host_name_are_allowed(host_name: str) -> None:
    assert NAME.fullmatch(new_device_id(host_name))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with StateDirectory(tmp_path), pytest.raises(StateInUseError, match="in use by another process") as caught:
        StateDirectory(tmp_path)
    assert caught.value.exit_code == ExitCode.STATE_IN_USE


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = "import os, sys, pathlib\nfrom edge_runtime.agent.identity import StateDirectory\n"
    code += "StateDirectory(pathlib.Path(sys.argv[1]))\nos.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env={**os.environ, "PYTHONPATH": "."})
    with StateDirectory(tmp_path) as state:
        assert state.device_id


@pytest.mark.parametrize("name", ["", "a/b", "+", "-x", "x" * 65])
def test_names_that_topics_do_not_allow_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadNameError, match="not allowed"):
        StateDirectory(tmp_path, name)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another with --state"):
        StateDirectory(tmp_path / "file" / "state")
