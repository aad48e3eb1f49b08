"""Files that are made durable together: many wait for the disk about as long as one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from edge_runtime.system import files

NUM_THREADS: Final = 16
"""Files flushed at once: file systems with a journal write one record for all of them."""

_ASIDE: Final = ".held"


class HeldFiles:
    """Files that were written aside and have no name yet; :meth:`settle` flushes and names them all.

    As :func:`edge_runtime.system.files.write_atomically`, a reader sees the old content of a file or the new.
    """

    def __init__(self) -> None:
        self._held: dict[Path, Path] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="flush")

    def write(self, path: Path, content: bytes) -> None:
        """Write the content of ``path`` aside.

        Raises:
            DiskFullError: there is no space; nothing is left behind.
            OSError: any other fault of the file system.
        """
        files.make_directories(path.parent)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")
        try:
            aside.write_bytes(content)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            files.raise_if_disk_full(error, path)
            raise
        before = self._held.pop(path, None)
        if before is not None:
            before.unlink(missing_ok=True)
        self._held[path] = aside

    def settle(self) -> None:
        """Name the files; when this returns, they survive a power cut.

        Raises:
            DiskFullError: there is no space.
            OSError: any other fault of the file system.
        """
        if not self._held:
            return
        try:
            for _ in self._threads.map(_flush, self._held.values()):
                pass
            for path, aside in self._held.items():
                aside.replace(path)
            for directory in {path.parent for path in self._held}:
                files.sync_directory(directory)
        except OSError as error:
            files.raise_if_disk_full(error, next(iter(self._held)))
            raise
        self._held.clear()

    def close(self) -> None:
        """Drop files that were not settled."""
        self._threads.shutdown()
        for aside in self._held.values():
            with contextlib.suppress(OSError):
                aside.unlink()
        self._held.clear()


def sweep(directory: Path) -> None:
    """Remove temporary files of a process that was killed, one folder below ``directory``."""
    for aside in directory.glob(f"*/.*{_ASIDE}"):
        with contextlib.suppress(OSError):
            aside.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
