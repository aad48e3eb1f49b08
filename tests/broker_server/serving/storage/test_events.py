"""The event log: read while it is written, whatever state its end is in."""

from __future__ import annotations

import contextlib
from pathlib import Path

from broker_server.serving.storage.events import (
    EventLog,
    EventReader,
    RoundFinished,
    RunFinished,
    Started,
    UpdateAccepted,
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
