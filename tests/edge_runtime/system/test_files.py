from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from edge_runtime.errors import ExitCode
from edge_runtime.system import files
from edge_runtime.system.files import DiskFullError, make_directories, raise_if_disk_full, write_atomically


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="disk full while writing") as caught:
        write_atomically(path, b"new")
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_the_same(number: int) -> None:
    with pytest.raises(DiskFullError):
        raise_if_disk_full(OSError(number, "full"), Path("f"))


def test_other_faults_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "f", b"x")


def test_each_directory_that_was_made_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    make_directories(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_directory_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync_directory", full)
    with pytest.raises(DiskFullError):
        make_directories(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"x" * 300_000])
def test_a_file_is_measured(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert files.measure(tmp_path / "file") == (len(content), hashlib.sha256(content).hexdigest())
