"""Callbacks: told in order in a thread of their own; what they raise is one line and ends nothing."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from broker_server.errors import ConfigError
from broker_server.serving.callbacks import Callback, CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.events import EventLog, RoundFinished, UpdateAccepted
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.wire.arms import LORA_AXES
from tests.broker_server.report_samples import round_records, sample_report

RUN = RunInfo(run_id="run-1", directory=Path(), task="causal-lm", settings={}, axes=LORA_AXES)


class Notes(Callback):
    """Notes what it was told, and in which thread."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.threads: set[str] = set()

    def _note(self, what: object) -> None:
        self.told.append(what)
        self.threads.add(threading.current_thread().name)

    def on_run_start(self, run: RunInfo) -> None:
        self._note(run.run_id)

    def on_round_end(self, record: RoundRecord) -> None:
        self._note(record.round_number)

    def on_run_end(self, report: Report | None) -> None:
        self._note("no report" if report is None else report.run_id)

    def close(self) -> None:
        self._note("closed")


class Broken(Callback):
    """Fails at every round, each time in another way."""

    def on_round_end(self, record: RoundRecord) -> None:
        raise [ValueError("no\nroom"), SystemExit(3), KeyError("loss")][record.round_number % 3]


def _play(*callbacks: Callback, rounds: int = 2, close_s: float = 10.0) -> list[str]:
    said: list[str] = []
    with CallbackWorker(callbacks, said.append, close_s=close_s) as worker:
        worker.run_started(RUN)
        for record in round_records(rounds):
            worker.happened(UpdateAccepted(at=1.0, round_number=record.round_number, device_id="device-1"))
            worker.happened(RoundFinished(at=2.0, record=record))
        worker.run_finished(sample_report())
    return said


def test_a_callback_is_told_all_in_order_in_one_thread_of_its_own() -> None:
    notes = Notes()

    assert _play(notes) == []
    assert notes.told == ["run-1", 0, 1, 2, sample_report().run_id, "closed"]
    assert notes.threads == {"callbacks"}


def test_what_a_callback_raises_is_one_line_each_and_the_others_are_told_all() -> None:
    notes = Notes()

    said = _play(Broken(), notes)

    assert said == [
        "callback Broken failed; the run goes on (ValueError: no\nroom)",
        "callback Broken failed; the run goes on (SystemExit: 3)",
        "callback Broken failed; the run goes on (KeyError: 'loss')",
    ]
    assert len(notes.told) == 6


def test_a_callback_that_hangs_is_left_behind_with_a_line() -> None:
    release = threading.Event()

    class Hanging(Callback):
        def on_run_start(self, run: RunInfo) -> None:
            release.wait(30 if run is RUN else 0)

    said = _play(Hanging(), close_s=0.05)
    release.set()

    assert said == ["callbacks are not done 0 s after the run: what they have yet to do is lost"]


def test_without_callbacks_there_is_no_thread() -> None:
    before = threading.active_count()
    with CallbackWorker((), logging.getLogger().warning) as worker:
        worker.run_started(RUN)
        assert threading.active_count() == before


def test_an_event_is_told_once_its_line_is_written(tmp_path: Path) -> None:
    told: list[tuple[object, int]] = []
    path = tmp_path / "events.jsonl"
    log = EventLog(path, lambda event: told.append((event, path.stat().st_size)))
    events = [UpdateAccepted(at=1.0, round_number=1, device_id=name) for name in ("a", "b")]

    log.hold()
    for event in events:
        log.write(event)
    assert not told
    log.settle()
    log.settle()
    log.close()

    assert told == [(event, path.stat().st_size) for event in events]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tensorbord", "callback 'tensorbord' is not known; did you mean 'tensorboard'?"),
        ("tensorboard,builtins:dict", "callback 'builtins:dict' is the class dict, expected a subclass of"),
        (f"{__name__}:Needy", f"callback '{__name__}:Needy' cannot be made \\(TypeError: .*fix it, or leave it out"),
    ],
)
def test_a_callback_that_cannot_be_made_is_told_before_the_run(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^{fault}"):
        make_callbacks(text)


class Needy(Callback):
    """Cannot be made without an argument."""

    def __init__(self, argument: str) -> None:
        self.argument = argument
