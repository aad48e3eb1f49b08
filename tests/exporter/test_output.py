"""A directory that a command writes is there whole or not at all, whatever was there before and whatever goes wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from exporter.errors import OutputExistsError
from exporter.output import Kind, check_output, foreign_writer, written_aside

THING = Kind("thing", "thing.json")


def write(out: Path, **files: str) -> None:
    with written_aside(out, THING) as directory:
        for stem, text in files.items():
            (directory / f"{stem}.json").write_text(text)


def content(directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in directory.iterdir()}


def test_a_new_directory_is_alone(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", thing="1", more="2")

    assert content(tmp_path / "a" / "b") == {"thing": "1", "more": "2"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_the_current_directory_may_be_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    check_output(Path(), THING, force=False)
    write(Path(), thing="1")
    write(Path(), thing="2")

    assert content(Path()) == {"thing": "2"}  # as a shell in it sees it


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, thing="old", gone="old")

    write(tmp_path, thing="new", more="new")

    assert content(tmp_path) == {"thing": "new", "more": "new"}


@pytest.mark.parametrize("num_renames", range(4))
def test_what_was_there_stays_when_it_cannot_be_replaced(
    num_renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, thing="old", gone="old")
    rename = Path.rename
    done: list[Path] = []

    def rename_some(source: Path, target: Path) -> Path:
        if len(done) == num_renames:
            monkeypatch.undo()
            raise PermissionError(1, "Operation not permitted")
        done.append(target)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", rename_some)
    with pytest.raises(PermissionError):
        write(tmp_path, thing="new", more="new")

    assert content(tmp_path) == {"thing": "old", "gone": "old"}


@pytest.mark.parametrize("before", [["out"], []], ids=["an empty directory", "nothing"])
def test_a_failure_leaves_what_was_there(before: list[str], tmp_path: Path) -> None:
    for name in before:
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError), written_aside(tmp_path / "out", THING) as directory:
        shutil.copyfile(__file__, directory / "thing.json").rename(tmp_path / "none" / "thing.json")

    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == before


def test_every_file_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write(tmp_path / "out", thing="1", more="2")

    assert {"thing.json", "more.json", tmp_path.name} <= set(flushed)


def test_only_its_own_kind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputExistsError, match="--force"):
        check_output(tmp_path, THING, force=False)
    with pytest.raises(OutputExistsError, match="holds no thing"):
        check_output(tmp_path, THING, force=True)


@pytest.mark.parametrize("message", ["I/O error: No space left on device (os error 28)", "cannot parse what I wrote"])
def test_a_foreign_writer_on_a_full_disk(message: str, tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).total if "parse" in message else 0
    with pytest.raises(OSError, match="No space left") as caught, foreign_writer(tmp_path, needed):
        raise RuntimeError(message)

    assert caught.value.errno == 28


def test_another_error_of_a_foreign_writer_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), foreign_writer(tmp_path, 1):
        _ = 1 / 0
