"""``events.jsonl``: what happens in a run, one JSON object a line; from the coordinator to people and displays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from broker_server.serving.storage.records import RoundRecord

EVENTS_FILE: Final = "events.jsonl"
"""In a run's directory."""


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

    After :meth:`hold` lines wait for :meth:`settle`, so that nothing is told that is not on disk.
    """

    def __init__(self, path: Path, told: Callable[[AnyEvent], None] | None = None) -> None:
        """Open the file.

        Args:
            path: of the file.
            told: called with each event once it is written.
        """
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

    @property
    def size_bytes(self) -> int:
        """Size of the file, without what is gathered."""
        return self._file.tell()

    def hold(self) -> None:
        """From now on gather events until :meth:`settle`, again and again."""
        self._is_holding = True

    def settle(self) -> None:
        """Write what was gathered."""
        if self._held:
            self._file.write(b"".join(msgspec.json.encode(event) + b"\n" for event in self._held))
            self._file.flush()
            settled, self._held = self._held, []
            if self._told is not None:
                for event in settled:
                    self._told(event)

    def close(self) -> None:
        """Close the file; what was not settled is dropped."""
        self._file.close()


class EventReader:
    """Follows a growing event file; a last line that is not finished yet waits, one that is damaged is passed over."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new_events(self) -> Iterator[AnyEvent]:
        """Events appended since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    yield _decoder.decode(line)
                except msgspec.DecodeError:
                    continue
