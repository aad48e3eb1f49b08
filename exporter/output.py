"""Directories that a command writes: refused where they hold something, there whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edge_runtime.system.files import raise_if_disk_full, sync_directory
from exporter.errors import OutputExistsError

_RUST_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of directory."""

    noun: str
    """For people."""
    marker: str
    """File that makes a directory one of these: written last into it and taken first out of it."""


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """A configuration as a file: indented JSON, keys sorted."""
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def check_output(out: Path, kind: Kind, *, force: bool) -> None:
    """Refuse an output directory that holds something.

    Raises:
        OutputExistsError: the directory is not empty; with ``force``, only if it does not hold an output of this kind.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        msg = f"{out} exists: choose another directory, or replace the {kind.noun} in it with --force"
        raise OutputExistsError(msg)
    if not (out / kind.marker).is_file():
        msg = f"{out} exists and holds no {kind.noun}, so --force does not replace it: choose another directory"
        raise OutputExistsError(msg)


@contextlib.contextmanager
def written_aside(out: Path, kind: Kind) -> Iterator[Path]:
    """A new directory whose files become those of ``out`` when the block ends well; otherwise ``out`` stays as it is.

    A directory that is there already stays the same directory, for it may be somebody's current one, or a mount point.

    Raises:
        DiskFullError: there is no space.
        OSError: any other fault of the file system.
    """
    existed = out.is_dir()
    aside = (out if existed else out.parent) / f".{secrets.token_hex(4)}.part"
    try:
        aside.mkdir(parents=True)
        yield aside
        _sync(aside)
        if existed:
            _exchange(out, aside, kind)
        else:
            aside.rename(out)
            sync_directory(out.parent)
    except OSError as error:
        raise_if_disk_full(error, out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def foreign_writer(directory: Path, num_bytes: int) -> Iterator[None]:
    """Detect a full disk in the errors of writers outside Python.

    The message of safetensors says so. Writers in C++ stop without an error, and fail when they read their own output.

    Args:
        directory: folder of the output.
        num_bytes: approximate size of the output; any error with less free space counts as a full disk.

    Raises:
        OSError: there is no space.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = _RUST_OS_ERROR.search(str(error))
        if found or shutil.disk_usage(directory).free < num_bytes:
            number = int(found[1]) if found else errno.ENOSPC
            raise OSError(number, os.strerror(number), str(directory)) from error
        raise


def _exchange(out: Path, aside: Path, kind: Kind) -> None:
    """Put the files of ``aside`` in the place of those of ``out``, or leave all as it was."""
    before = aside.with_suffix(".old")
    before.mkdir()
    old = sorted(set(out.iterdir()) - {aside, before}, key=lambda path: path.name != kind.marker)
    new = sorted(aside.iterdir(), key=lambda path: path.name == kind.marker)
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in [*((path, before) for path in old), *((path, out) for path in new)]:
            moved.append((target / source.name, source))
            source.rename(target / source.name)
    except BaseException:
        for place, source in reversed(moved):
            if not source.exists():
                place.rename(source)
        before.rmdir()
        raise
    sync_directory(out)
    shutil.rmtree(before, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Make all files of a directory durable: whoever wrote them may not have done so."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)
