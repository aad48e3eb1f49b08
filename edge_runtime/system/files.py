"""Atomic writes of files: write a temporary file, flush it to disk, rename it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edge_runtime.errors import ExitCode, FedSpineError

PRIVATE_FOLDER: Final = 0o700
PRIVATE_FILE: Final = 0o600
"""Modes of folders and files with state: only their owner may use them."""


class DiskFullError(FedSpineError):
    """The disk, or the user's quota on it, is full."""

    exit_code = ExitCode.DISK_FULL


def write_atomically(path: Path, *parts: bytes | memoryview, is_private: bool = False) -> None:
    """Write ``parts`` to ``path`` so that a reader sees the old content or the new, also after a power cut.

    Args:
        path: the file.
        parts: its new content, one piece after the other.
        is_private: whether only its owner may read it.

    Raises:
        DiskFullError: there is no space; nothing is left behind.
        OSError: any other fault of the file system.
    """
    write_stream_atomically(path, parts, is_private=is_private)


def write_stream_atomically(path: Path, parts: Iterable[bytes | memoryview], *, is_private: bool = False) -> None:
    """Write as :func:`write_atomically` does, from parts that are produced one by one."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with aside.open("wb") as file:
            if is_private:
                os.fchmod(file.fileno(), PRIVATE_FILE)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise_if_disk_full(error, path)
        raise


def keep_private(path: Path, mode: int) -> None:
    """Restrict a file or folder to its owner; file systems without owners are left alone.

    Args:
        path: a file or folder; it may be missing.
        mode: :data:`PRIVATE_FOLDER` or :data:`PRIVATE_FILE`.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(mode)


def make_directories(directory: Path) -> None:
    """Make a directory and its missing parents, durable across a power cut.

    Raises:
        DiskFullError: there is no space.
        OSError: any other fault of the file system; among others, a file is in the way.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in missing[::-1]:
            sync_directory(path.parent)
    except OSError as error:
        raise_if_disk_full(error, directory)
        raise


def raise_if_disk_full(error: OSError, path: Path) -> None:
    """Translate "no space left" into one clear line; return for any other error.

    Raises:
        DiskFullError: ``error`` is about space or quota.
    """
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        msg = f"disk full while writing {path}: free some space and start again; nothing half-written was left"
        raise DiskFullError(msg) from error


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 (64 hexadecimal digits) of a file, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
