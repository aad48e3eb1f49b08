"""State is of its owner alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.agent.identity import StateDirectory
from edge_runtime.system.files import PRIVATE_FILE, PRIVATE_FOLDER, keep_private, write_atomically


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, 0o644], ids=["new", "replaced"])
def test_a_private_file_is_of_its_owner_alone(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "secret"
    if before is not None:
        path.touch(before)
    write_atomically(path, b"a", b"b", is_private=True)
    assert (mode(path), path.read_bytes()) == (PRIVATE_FILE, b"ab")


def test_what_is_not_there_needs_no_protection(tmp_path: Path) -> None:
    keep_private(tmp_path / "none", PRIVATE_FILE)


def test_a_state_directory_is_of_its_owner_alone(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "above" / "state"):
        pass
    state = tmp_path / "above" / "state"
    assert {mode(path) for path in (state, *state.iterdir()) if path.is_dir()} == {PRIVATE_FOLDER}
    assert mode(state / "lock") == PRIVATE_FILE


def test_one_of_an_earlier_release_is_closed(tmp_path: Path) -> None:
    (tmp_path / "device-id").write_text("board-7\n")
    (tmp_path / "outbox").mkdir(0o755)
    tmp_path.chmod(0o755)
    with StateDirectory(tmp_path) as state:
        assert state.device_id == "board-7"
    assert (mode(tmp_path), mode(tmp_path / "outbox")) == (PRIVATE_FOLDER, PRIVATE_FOLDER)


def test_a_folder_that_was_given_and_is_not_ours_stays_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with StateDirectory(tmp_path):
        pass
    assert mode(tmp_path) == 0o755
