"""The state directory of a device: used by one process at a time, with one permanent device id.

STATE/lock               held while a process runs
STATE/device-id          the id, made once
STATE/capabilities.json  measured once per machine and version
STATE/artifacts/         files by digest of their artifact
STATE/outbox/            updates that the coordinator has not yet answered
STATE/checkpoint/        state of the training under way
STATE/methods/           a folder for each method that keeps something between assignments
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_runtime.agent.errors import BadNameError, StateError, StateInUseError
from edge_runtime.bounds.fields import NAME
from edge_runtime.system.files import PRIVATE_FILE, PRIVATE_FOLDER, keep_private, raise_if_disk_full, write_atomically

logger = logging.getLogger(__name__)

LOCK_FILE: Final = "lock"
ID_FILE: Final = "device-id"
CAPABILITIES_FILE: Final = "capabilities.json"
ARTIFACTS: Final = "artifacts"
OUTBOX: Final = "outbox"
CHECKPOINT: Final = "checkpoint"
METHODS: Final = "methods"


class StateDirectory:
    """An open, locked state directory; a context manager that unlocks.

    Attributes:
        path: the directory.
        device_id: name of this device, the same at every start.
    """

    def __init__(self, path: Path, device_id: str | None = None) -> None:
        """Make the directory if need be, lock it, and read or make the device id.

        Args:
            path: where this device keeps its state.
            device_id: its name; None = the one used before, or a new one.

        Raises:
            StateInUseError: another process holds it.
            StateError: the directory cannot be written.
            BadNameError: the name is not allowed.
            DiskFullError: there is no space.
        """
        self.path = path
        if device_id is not None:
            check_name(device_id, "device id")
        try:
            path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            if (path / ID_FILE).exists():  # an earlier release made it readable for others
                keep_private(path, PRIVATE_FOLDER)
            for directory in (path / name for name in (ARTIFACTS, OUTBOX, CHECKPOINT, METHODS)):
                directory.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
                keep_private(directory, PRIVATE_FOLDER)
            lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise_if_disk_full(error, path)
            msg = f"state directory {path} cannot be used ({error.strerror}): choose another with --state"
            raise StateError(msg) from error
        self._lock: int | None = lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.device_id = self._identify(device_id)
        except BlockingIOError as error:
            self.close()
            msg = f"state directory {path} is in use by another process: stop it, or choose another with --state"
            raise StateInUseError(msg) from error
        except BaseException:
            self.close()
            raise

    @property
    def artifacts(self) -> Path:
        """Folder of the cached artifacts."""
        return self.path / ARTIFACTS

    @property
    def outbox(self) -> Path:
        """Folder of the updates that wait for an answer."""
        return self.path / OUTBOX

    @property
    def methods(self) -> Path:
        """Folder of the files that methods keep between assignments."""
        return self.path / METHODS

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / CHECKPOINT

    @property
    def capabilities_file(self) -> Path:
        """File of the measurements of this machine."""
        return self.path / CAPABILITIES_FILE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the directory; closing twice does no harm."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _identify(self, given: str | None) -> str:
        path = self.path / ID_FILE
        stored = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
        known = stored if NAME.fullmatch(stored) else None
        chosen = given or known or new_device_id(socket.gethostname())
        if known is None and path.exists():
            logger.warning(
                "%s holds %r, which is not a device id: this device is %s from now on", path, stored[:80], chosen
            )
        if chosen != known:
            write_atomically(path, (chosen + "\n").encode())
        return chosen


def new_device_id(host_name: str) -> str:
    """A new id: the host's name, for people, and eight random hexadecimal digits, because images are cloned."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", host_name.partition(".")[0]).strip("-._")[:40]
    return f"{readable or 'device'}-{secrets.token_hex(4)}"


def check_name(name: str, what: str) -> None:
    """Refuse a device id or fleet that cannot be a level of a topic.

    Raises:
        BadNameError: it cannot.
    """
    if NAME.fullmatch(name) is None:
        msg = (
            f"{what} {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
        raise BadNameError(msg)
