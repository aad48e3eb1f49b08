"""The store: whatever the moment of a crash, the next process finds what was promised."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from broker_server.errors import StoreError
from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.serving.storage.records import EvaluationRecord, RoundRecord
from broker_server.serving.storage.rows import SchedulerState
from broker_server.serving.storage.store import Store
from edge_runtime.system import files
from edge_runtime.wire import chunks
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.measures import Measurements
from edge_runtime.wire.messages import AssignmentKey, FailureReason, Register, Update
from tests.broker_server import tiny

LARGE, SMALL = LORA_AXES.parse("0.0:8,0.5:4")
SCHEDULER_STATE = SchedulerState(scheduler="uniform", state={"counts": {"a": [1, 0]}})
BLOB = b"an adapter" * 100


def open_participants(*device_ids: str) -> list[Participant]:
    return [Participant(device_id=device_id, attempt=1, arm=LARGE) for device_id in device_ids]


def update(device_id: str = "a", *, blob: bytes = BLOB, attempt: int = 1, train_loss: float = 1.0) -> Update:
    return Update(
        key=AssignmentKey(run_id="run", round_number=1, device_id=device_id, attempt=attempt),
        blob=chunks.describe(blob),
        num_examples=10,
        train_loss=train_loss,
        measurements=Measurements(
            train_s=1.5,
            step_s_p50=0.1,
            step_s_p95=0.2,
            fetch_s=0.0,
            prepare_s=0.3,
            evaluate_s=0.1,
            peak_rss_bytes=2**53,
            bytes_up=3,
            bytes_down=4,
        ),
    )


def record(round_number: int) -> RoundRecord:
    evaluation = EvaluationRecord(loss=1.0, accuracy=0.5, num_targets=9, is_complete=True, evaluate_s=0.1)
    return RoundRecord(round_number=round_number, seconds=2.0, elapsed_s=3.0, evaluation=evaluation, devices=())


def reopen(run_dir: Path) -> Store:
    """Return the store that the next process opens after a crash: it has only the files of the last one."""
    return Store.open(run_dir)


# ---- each point of a round at which a process may die ----------------------------------------------------------------


def test_nothing_begun(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    assert store.load_open_round() is None
    assert store.load_round_records() == []
    assert store.load_scheduler("uniform") is None


def test_after_assignments_were_written(tmp_path: Path) -> None:
    reopen(tmp_path).begin_round(1, open_participants("a", "b"), SCHEDULER_STATE, 100.0)
    opened = reopen(tmp_path).load_open_round()
    assert opened is not None
    assert (opened.round_number, opened.active_s) == (1, 0.0)
    assert opened.participants == {p.device_id: p for p in open_participants("a", "b")}
    assert reopen(tmp_path).load_scheduler("uniform") == SCHEDULER_STATE.state


def test_after_the_file_of_an_update_but_before_its_row(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
    path = store.update_path(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1))
    path.parent.mkdir(parents=True)
    path.write_bytes(BLOB)
    again = reopen(tmp_path)
    opened = again.load_open_round()
    assert opened is not None
    assert opened.participants["a"].is_open
    assert not again.is_accepted(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1))
    again.accept_update(update(), BLOB, 101.0)  # the device announces it again
    assert again.load_updates(1) == [update()]


def test_after_the_row_of_an_update_but_before_the_verdict(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, open_participants("a", "b"), SCHEDULER_STATE, 100.0)
    store.accept_update(update(), BLOB, 101.0)
    again = reopen(tmp_path)
    opened = again.load_open_round()
    assert opened is not None
    assert opened.participants["a"].outcome is Outcome.ACCEPTED
    assert opened.participants["b"].is_open
    assert again.read_update(again.load_updates(1)[0]) == BLOB
    assert again.is_accepted(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1))


def test_after_the_verdict(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
    store.accept_update(update(), BLOB, 101.0)
    accepted = Participant(device_id="a", attempt=1, arm=LARGE, outcome=Outcome.ACCEPTED)
    store.save_participants(1, [accepted], SCHEDULER_STATE, 7.5)
    opened = reopen(tmp_path).load_open_round()
    assert opened is not None
    assert opened.participants == {"a": accepted}
    assert opened.active_s == 7.5


def test_after_the_record_the_round_is_over(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
    store.finish_round(record(1), SCHEDULER_STATE, 110.0)
    again = reopen(tmp_path)
    assert again.load_open_round() is None
    assert again.load_round_records() == [record(1)]


def test_round_is_begun_and_finished_twice_without_harm(tmp_path: Path) -> None:
    for _ in range(2):
        store = reopen(tmp_path)
        store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
        store.accept_update(update(), BLOB, 101.0)
        store.finish_round(record(1), SCHEDULER_STATE, 110.0)
    assert reopen(tmp_path).load_round_records() == [record(1)]


# ---- what else is kept -----------------------------------------------------------------------------------------------


def test_last_attempt_counts(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    reason = FailureReason.ARM_INFEASIBLE
    first = Participant(device_id="a", attempt=1, arm=LARGE, awaits_arm=True, reason=reason, detail="needs more")
    second = Participant(device_id="a", attempt=2, arm=SMALL)
    store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
    store.save_participants(1, [first], SCHEDULER_STATE, 1.0)
    before = reopen(tmp_path).load_open_round()
    assert before is not None
    assert before.participants["a"].outcome is Outcome.FAILED
    store.save_participants(1, [second], SCHEDULER_STATE, 1.0)
    after = reopen(tmp_path).load_open_round()
    assert after is not None
    assert after.participants == {"a": second}


def test_update_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, [Participant(device_id="a", attempt=2, arm=SMALL)], SCHEDULER_STATE, 100.0)
    store.accept_update(update(attempt=1), BLOB, 101.0)
    opened = reopen(tmp_path).load_open_round()
    assert opened is not None
    assert opened.participants["a"].is_open


@pytest.mark.parametrize("damage", [b"", b"something else"])
def test_damaged_update_is_asked_for_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = reopen(tmp_path)
    store.begin_round(1, open_participants("a"), SCHEDULER_STATE, 100.0)
    store.accept_update(update(), BLOB, 101.0)
    accepted = Participant(device_id="a", attempt=1, arm=LARGE, outcome=Outcome.ACCEPTED)
    store.save_participants(1, [accepted], SCHEDULER_STATE, 1.0)
    store.update_path(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1)).write_bytes(damage)
    opened = reopen(tmp_path).load_open_round()
    assert opened is not None
    assert opened.participants["a"].is_open
    assert any("is asked again" in line for line in caplog.messages)


def test_devices_are_remembered(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    for session_id in ("first", "second"):
        register = Register(
            device_id="a", session_id=session_id, capabilities=tiny.capabilities(), num_examples=2**31 - 1
        )
        store.save_device(register, 5.0)
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        query = "SELECT device_id, datetime(last_seen_at, 'unixepoch'), register ->> 'session_id' FROM devices"
        rows = list(connection.execute(query))
    connection.close()
    assert rows == [("a", "1970-01-01 00:00:05", "second")]
    assert store.load_sessions() == {"a": "second"}


def test_device_whose_row_is_damaged_has_no_session(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    for device_id in ("a", "b"):
        store.save_device(
            Register(device_id=device_id, session_id="s", capabilities=tiny.capabilities(), num_examples=1), 5.0
        )
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        connection.execute("UPDATE devices SET register = 'x' WHERE device_id = 'a'")
    connection.close()
    assert store.load_sessions() == {"b": "s"}


def test_directories_of_updates_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = files.sync_directory

    def spy(directory: Path) -> None:
        synced.append(str(directory.relative_to(tmp_path)))
        sync(directory)

    monkeypatch.setattr(files, "sync_directory", spy)
    store = reopen(tmp_path)
    store.accept_update(update(), BLOB, 101.0)
    assert synced == [".", "updates", "updates/1"]
    store.accept_update(update("b"), BLOB, 101.0)
    assert synced[3:] == ["updates/1"]


# ---- a store that cannot be used -------------------------------------------------------------------------------------


def test_other_version_is_refused(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99"):
        reopen(tmp_path)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"state\.sqlite cannot be used"):
        reopen(tmp_path)


def test_durability_is_what_was_promised(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    with store._transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
