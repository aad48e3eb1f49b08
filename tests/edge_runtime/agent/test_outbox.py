from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.agent.outbox import MAX_ENTRIES, Outbox
from edge_runtime.system.files import DiskFullError
from edge_runtime.wire.messages import Update

MakeUpdate = Callable[..., Update]


def test_an_update_survives_the_process(tmp_path: Path, make_update: MakeUpdate) -> None:
    update = make_update(b"adapter")
    Outbox(tmp_path).add(update, b"adapter")
    again = Outbox(tmp_path)
    assert again.updates() == [update]
    assert again.get(update.key) == update
    assert again.blob_file(update.key).read_bytes() == b"adapter"


def test_an_update_that_holds_its_bytes_is_one_file(tmp_path: Path, make_update: MakeUpdate) -> None:
    update = make_update(b"scalars", is_inline=True)
    Outbox(tmp_path).add(update, b"scalars")
    assert [path.suffix for path in tmp_path.iterdir()] == [".update"]
    again = Outbox(tmp_path)
    assert again.updates() == [update]
    assert again.remove(update.key) == update
    assert list(tmp_path.iterdir()) == []


def test_an_answered_update_is_gone(tmp_path: Path, make_update: MakeUpdate) -> None:
    outbox, update = Outbox(tmp_path), make_update(b"adapter")
    outbox.add(update, b"adapter")
    assert outbox.remove(update.key) == update
    assert outbox.remove(update.key) is None
    assert list(tmp_path.iterdir()) == []


def test_order_is_kept(tmp_path: Path, make_update: MakeUpdate) -> None:
    outbox = Outbox(tmp_path)
    for number in (3, 1, 2):
        outbox.add(make_update(bytes([number]), number), bytes([number]))
    assert [u.key.round_number for u in Outbox(tmp_path).updates()] == [3, 1, 2]


def test_the_oldest_makes_room(tmp_path: Path, make_update: MakeUpdate) -> None:
    outbox = Outbox(tmp_path)
    for number in range(1, MAX_ENTRIES + 3):
        outbox.add(make_update(bytes([number]), number), bytes([number]))
    assert [u.key.round_number for u in outbox.updates()] == list(range(3, MAX_ENTRIES + 3))
    assert len(list(tmp_path.iterdir())) == 2 * MAX_ENTRIES


def test_a_blob_without_its_message_is_removed(tmp_path: Path, make_update: MakeUpdate) -> None:
    Outbox(tmp_path).add(make_update(b"adapter"), b"adapter")
    next(tmp_path.glob("*.update")).unlink()
    assert Outbox(tmp_path).updates() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pattern", ["*.update", "*.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"\0\1\2"], ids=["empty", "garbage"])
def test_damaged_entries_are_dropped(tmp_path: Path, make_update: MakeUpdate, pattern: str, damage: bytes) -> None:
    Outbox(tmp_path).add(make_update(b"adapter"), b"adapter")
    next(tmp_path.glob(pattern)).write_bytes(damage)
    assert Outbox(tmp_path).updates() == []
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    for suffix in ("update", "safetensors"):
        (tmp_path / f".{'0a' * 12}.{suffix}.0123abcd.part").write_bytes(b"half")
    Outbox(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_there_stays(tmp_path: Path, make_update: MakeUpdate) -> None:
    """A file system's own folder, notes of an owner, a folder that is named as an entry, a link to nowhere."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.update").write_bytes(b"mine")
    (tmp_path / ("0" * 24 + ".update")).mkdir()
    (tmp_path / "0abc.safetensors").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    outbox = Outbox(tmp_path)
    outbox.add(make_update(b"adapter"), b"adapter")
    assert [update.key.round_number for update in Outbox(tmp_path).updates()] == [
        make_update(b"adapter").key.round_number
    ]
    assert set(before) < set(tmp_path.iterdir())


@pytest.mark.parametrize("num_files", [0, 1], ids=["before the blob", "before the message"])
def test_a_full_disk_leaves_nothing_of_the_update_and_all_others(
    tmp_path: Path, make_update: MakeUpdate, monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    outbox = Outbox(tmp_path)
    for number in range(1, MAX_ENTRIES + 1):
        outbox.add(make_update(bytes([number]), number), bytes([number]))
    before = sorted(tmp_path.iterdir())
    sync, flushed = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(flushed) >= 2 * num_files:  # a file and its directory
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError):
            outbox.add(make_update(b"adapter", 99), b"adapter")
    assert [u.key.round_number for u in outbox.updates()] == list(range(1, MAX_ENTRIES + 1))
    assert sorted(tmp_path.iterdir()) == before


def test_one_run_does_not_push_out_what_another_has_not_answered(tmp_path: Path, make_update: MakeUpdate) -> None:
    outbox = Outbox(tmp_path)
    waiting = make_update(b"waiting", 1, run_id="mine")
    outbox.add(waiting, b"waiting")
    for number in range(1, 3 * MAX_ENTRIES):
        blob = bytes([number])
        outbox.add(make_update(blob, number, run_id="loud"), blob)
    kept = Outbox(tmp_path).updates()
    assert waiting in kept
    assert [u.key.round_number for u in kept if u.key.run_id == "loud"] == [3 * MAX_ENTRIES - n for n in (3, 2, 1)]
    assert len(kept) == MAX_ENTRIES


def test_the_outbox_is_bounded_however_many_runs_there_are(tmp_path: Path, make_update: MakeUpdate) -> None:
    outbox = Outbox(tmp_path)
    for number in range(1, 3 * MAX_ENTRIES):
        blob = bytes([number])
        outbox.add(make_update(blob, 1, run_id=f"run-{number}"), blob)
    assert [u.key.run_id for u in Outbox(tmp_path).updates()] == [f"run-{3 * MAX_ENTRIES - n}" for n in (4, 3, 2, 1)]
