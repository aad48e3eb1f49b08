"""The report of a run that a coordinator played: from its configuration and its store, in any state of the run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest

from broker_server import cli
from broker_server.errors import RunFailedError
from broker_server.serving.report.from_run import report_run
from broker_server.serving.report.schema import decode_report
from broker_server.serving.storage.events import EVENTS_FILE, EventLog, RunFinished
from broker_server.serving.storage.records import RoundRecord
from broker_server.serving.storage.store import Store
from edge_runtime.errors import ExitCode
from tests.broker_server import fleet
from tests.broker_server.report_samples import round_records

BROKER = "mqtt://lab:hidden@broker.example:1884"


def play(run_dir: Path, records: list[RoundRecord], **changes: object) -> None:
    """Write the directory that a coordinator of boards leaves after these rounds."""
    fleet.config(run_dir, BROKER, **changes)
    (run_dir / "test.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    with contextlib.closing(Store.open(run_dir)) as store:
        for record in records:
            store.finish_round(record, None, 1.0)


@pytest.mark.parametrize("num_rounds", [0, 1, 3])
def test_a_run_of_boards_has_a_report_in_any_state(
    num_rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = round_records(num_rounds)
    play(tmp_path, records, test_file="test.jsonl")

    assert cli.call(["report", str(tmp_path)]) == ExitCode.OK

    assert "report.html" in capsys.readouterr().out
    report = decode_report((tmp_path / "report.json").read_bytes())
    page = (tmp_path / "report.html").read_text()
    assert [entry.round_number for entry in report.rounds] == list(range(num_rounds + 1))
    assert report.final.loss == records[-1].evaluation.loss  # type: ignore[union-attr]
    assert (report.final.seconds, report.data.num_test) == (records[-1].elapsed_s, 2)
    assert report.config["scheduler"] == "fixed"
    assert ("device-2" in page) == bool(num_rounds)
    assert "hidden" not in page
    assert b"hidden" not in (tmp_path / "report.json").read_bytes()


def test_a_run_began_with_its_first_round_where_the_events_of_then_are_gone(tmp_path: Path) -> None:
    play(tmp_path, round_records(1))
    with contextlib.closing(EventLog(tmp_path / EVENTS_FILE)) as log:
        log.write(RunFinished(at=50.0, run_id=fleet.RUN))
    assert report_run(tmp_path).created_at == 1.0


def test_a_run_that_measures_nothing_has_a_report_without_quality(tmp_path: Path) -> None:
    play(tmp_path, [msgspec.structs.replace(record, evaluation=None) for record in round_records()])

    report = report_run(tmp_path)

    assert (report.final.loss, report.final.num_targets, report.final.round_number) == (None, 0, 3)
    assert report.data.num_train == 300
    assert [len(entry.devices) for entry in report.rounds] == [0, 3, 3, 3]
    assert decode_report((tmp_path / "report.json").read_bytes()) == report


def test_a_run_without_a_finished_round_has_nothing_to_report(tmp_path: Path) -> None:
    play(tmp_path, [])

    with pytest.raises(RunFailedError, match="no finished round yet"):
        report_run(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_the_report_is_made_again_after_more_rounds(tmp_path: Path) -> None:
    records = round_records()
    play(tmp_path, records[:2])
    assert report_run(tmp_path).rounds[-1].round_number == 1

    with contextlib.closing(Store.open(tmp_path)) as store:
        store.finish_round(records[2], None, 1.0)

    assert report_run(tmp_path).rounds[-1].round_number == 2


def test_what_is_no_run_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["report", str(tmp_path)]) == ExitCode.USAGE
    assert "config.toml cannot be read" in capsys.readouterr().err
