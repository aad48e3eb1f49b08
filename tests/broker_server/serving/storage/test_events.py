"""The event log: read while it is written, whatever state its end is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from broker_server.serving.storage.events import (
    EVENTS_FILE,
    AnyEvent,
    EventLog,
    EventReader,
    RoundFinished,
    RunFinished,
    Started,
    UpdateAccepted,
    older_file,
)
from broker_server.serving.storage.records import RoundRecord


def test_reader_follows_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.new_events()) == []
    with contextlib.closing(EventLog(path)) as log:
        started = Started(at=1.0, run_id="r", next_round=0, num_rounds=3)
        log.write(started)
        assert list(reader.new_events()) == [started]
        assert list(reader.new_events()) == []
        record = RoundRecord(round_number=1, seconds=1.0, elapsed_s=1.0, evaluation=None, devices=())
        finished = RoundFinished(at=2.0, record=record)
        log.write(finished)
        assert list(reader.new_events()) == [finished]


def test_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    whole = b'{"event":"runfinished","at":1.0,"run_id":"r"}\n'
    path.write_bytes(whole[:20])
    assert list(reader.new_events()) == []
    path.write_bytes(whole)
    assert list(reader.new_events()) == [RunFinished(at=1.0, run_id="r")]


def test_damaged_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"upd\n{"event":"updateaccepted","at":1,"round_number":2,"device_id":"a"}\n')
    assert list(EventReader(path).new_events()) == [UpdateAccepted(at=1.0, round_number=2, device_id="a")]


def test_restarted_writer_does_not_glue_its_first_event_to_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"updateaccepted","at":1,"round_num')  # the process died while it wrote
    with contextlib.closing(EventLog(path)) as log:
        log.write(RunFinished(at=1.0, run_id="r"))
    assert list(EventReader(path).new_events()) == [RunFinished(at=1.0, run_id="r")]


# ---- files of a bounded size -----------------------------------------------------------------------------------------

MOST = 1000


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLog]:
    """Its files have at most :data:`MOST` bytes, about 13 events."""
    monkeypatch.setattr("broker_server.serving.storage.events.MAX_FILE_BYTES", MOST)
    with contextlib.closing(EventLog(tmp_path / EVENTS_FILE)) as one:
        yield one


def accepted(number: int) -> UpdateAccepted:
    return UpdateAccepted(at=1.0, round_number=number, device_id="a")


def write(log: EventLog, numbers: Iterable[int]) -> None:
    for number in numbers:
        log.write(accepted(number))


def numbers_of(events: Iterable[AnyEvent]) -> list[int]:
    return [event.round_number for event in events if isinstance(event, UpdateAccepted)]


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_two_files_of_a_bounded_size_hold_what_happened_last(log: EventLog, tmp_path: Path) -> None:
    write(log, range(1000))

    found = sizes(tmp_path)
    assert sorted(found) == ["events.1.jsonl", "events.jsonl"]
    assert max(found.values()) <= MOST
    assert found["events.1.jsonl"] > MOST // 2
    kept = numbers_of(EventReader(tmp_path / EVENTS_FILE).new_events())
    assert kept == list(range(kept[0], 1000))
    assert len(kept) > 12


def test_a_reader_misses_nothing_where_the_file_is_another_one_meanwhile(log: EventLog, tmp_path: Path) -> None:
    reader, late = EventReader(tmp_path / EVENTS_FILE), EventReader(tmp_path / EVENTS_FILE, from_end=True)
    found: list[int] = []
    for begin in range(0, 300, 10):
        write(log, range(begin, begin + 10))
        found += numbers_of(reader.new_events())
    assert found == list(range(300))
    assert numbers_of(reader.new_events()) == []
    assert numbers_of(late.new_events())[-1] == 299  # it slept, and what is kept is not lost on it


def test_a_reader_that_begins_at_the_end_reads_on_in_the_next_file(log: EventLog, tmp_path: Path) -> None:
    write(log, range(10))
    reader = EventReader(tmp_path / EVENTS_FILE, from_end=True)
    write(log, range(10, 20))
    assert older_file(tmp_path / EVENTS_FILE).exists()
    assert numbers_of(reader.new_events()) == list(range(10, 20))


def test_a_killed_writer_between_two_files_loses_nothing(log: EventLog, tmp_path: Path) -> None:
    write(log, range(10))
    log.close()
    (tmp_path / EVENTS_FILE).replace(older_file(tmp_path / EVENTS_FILE))
    reader = EventReader(tmp_path / EVENTS_FILE)
    assert numbers_of(reader.new_events()) == list(range(10))
    with contextlib.closing(EventLog(tmp_path / EVENTS_FILE)) as again:
        write(again, [10])
    assert numbers_of(reader.new_events()) == [10]


def test_what_was_gathered_stays_together(log: EventLog, tmp_path: Path) -> None:
    log.hold()
    write(log, range(40))
    log.settle()
    assert list(sizes(tmp_path)) == [EVENTS_FILE]
    write(log, [40])
    log.settle()
    assert numbers_of(EventReader(tmp_path / EVENTS_FILE).new_events()) == list(range(41))
