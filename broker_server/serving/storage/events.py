"""``events.jsonl``: the events of a run for people and displays, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from broker_server.serving.storage.records import RoundRecord

EVENTS_FILE: Final = "events.jsonl"
"""In a run's directory."""

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Size from which on the file becomes :func:`older_file`, in place of the one that was that, and a new one begins."""


def older_file(path: Path) -> Path:
    """Path of the file with the events before those of an event file, as many as are kept."""
    return path.with_suffix(f".1{path.suffix}")


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=lambda name: name.lower()):
    """Base of all events; ``at`` is Unix seconds, UTC."""

    at: float


class Started(Event, frozen=True, kw_only=True):
    """A coordinator process began (or went on with) a run."""

    run_id: str
    next_round: int
    num_rounds: int


class DeviceSeen(Event, frozen=True, kw_only=True):
    """A device registered, changed its state, moved on, or went offline."""

    device_id: str
    state: str
    round_number: int
    step: int
    num_steps: int
    detail: str


class RoundStarted(Event, frozen=True, kw_only=True):
    """Assignments went out: ``arms`` maps device ids to arms as the method writes them."""

    round_number: int
    arms: dict[str, str]


class UpdateAccepted(Event, frozen=True, kw_only=True):
    """An update is on disk and counts."""

    round_number: int
    device_id: str


class UpdatesDiscarded(Event, frozen=True, kw_only=True):
    """The updates of a round could not be used: its adapter is that of the round before."""

    round_number: int
    detail: str


class RoundFinished(Event, frozen=True, kw_only=True):
    """A round is over."""

    record: RoundRecord


class RunFinished(Event, frozen=True, kw_only=True):
    """All rounds are done."""

    run_id: str


AnyEvent = Started | DeviceSeen | RoundStarted | UpdateAccepted | UpdatesDiscarded | RoundFinished | RunFinished

_decoder = msgspec.json.Decoder(AnyEvent)


class EventLog:
    """Appends events to a file, each line flushed; a line that a killed process left unfinished is ended first.

    The file and the one before it have :data:`MAX_FILE_BYTES` each, or as many bytes as were gathered at once. Earlier
    events are dropped; the store has the records of the rounds.

    After :meth:`hold` lines wait for :meth:`settle`, so that the facts in them are on disk first.
    """

    def __init__(self, path: Path, told: Callable[[AnyEvent], None] | None = None) -> None:
        """Open the file.

        Args:
            path: of the file.
            told: called with each event once it is written.
        """
        self._path = path
        self._file: IO[bytes] = path.open("a+b")
        self._told = told
        self._is_holding = False
        self._held: list[AnyEvent] = []
        if self._file.tell() > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: AnyEvent) -> None:
        """Append one event."""
        self._held.append(event)
        if not self._is_holding:
            self.settle()

    def hold(self) -> None:
        """From now on gather events until :meth:`settle`, again and again."""
        self._is_holding = True

    def settle(self) -> None:
        """Write the gathered lines."""
        if self._held:
            lines = b"".join(msgspec.json.encode(event) + b"\n" for event in self._held)
            if (size := self._file.tell()) > 0 and size + len(lines) > MAX_FILE_BYTES:
                self._rotate()
            self._file.write(lines)
            self._file.flush()
            settled, self._held = self._held, []
            if self._told is not None:
                for event in settled:
                    self._told(event)

    def close(self) -> None:
        """Close the file; gathered lines that were not settled are dropped."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        self._path.replace(older_file(self._path))
        self._file = self._path.open("a+b")


class EventReader:
    """Follows a growing event file; a last line that is not finished yet waits, one that is damaged is passed over.

    It begins with the older file, and reads one to its end before it follows the next.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._inode, self._offset = -1, 0
        """Of the file that was read last, and how far."""
        if from_end and path.exists():
            now = path.stat()
            self._inode, self._offset = now.st_ino, now.st_size

    def new_events(self) -> Iterator[AnyEvent]:
        """Events appended since the last call, those left out of which the file is gone."""
        with contextlib.ExitStack() as stack:
            for file in self._unread(stack):
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._offset:
                    self._inode, self._offset = now.st_ino, 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    try:
                        yield _decoder.decode(line)
                    except msgspec.DecodeError:
                        continue

    def _unread(self, stack: contextlib.ExitStack) -> list[IO[bytes]]:
        """The file that was read last, if there is still one, and those after it, oldest first."""
        found: dict[int, IO[bytes]] = {}
        # in this order a file that is rotated meanwhile is not missed
        for path in (self._path, older_file(self._path)):
            with contextlib.suppress(FileNotFoundError):
                file = stack.enter_context(path.open("rb"))
                found.setdefault(os.fstat(file.fileno()).st_ino, file)
        inodes = list(reversed(found))
        begin = inodes.index(self._inode) if self._inode in inodes else 0
        return [found[inode] for inode in inodes[begin:]]
