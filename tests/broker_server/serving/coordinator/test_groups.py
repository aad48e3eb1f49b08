"""Groups of durable writes: nothing is promised before it is on disk, and the cost of a step does not grow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    DeviceRegistered,
    Participant,
    Phase,
    RoundLimits,
    UpdateAnnounced,
)
from broker_server.serving.coordinator import ledger
from broker_server.serving.coordinator.ledger import Ledger
from broker_server.serving.storage import rows
from broker_server.serving.storage.events import EventLog, EventReader, UpdateAccepted
from broker_server.serving.storage.held_files import HeldFiles
from broker_server.serving.storage.rows import SchedulerState
from broker_server.serving.storage.store import Store
from edge_runtime.system.files import DiskFullError
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import Assignment, AssignmentKey, Verdict
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.broker_server.round_desk import Desk, key
from tests.broker_server.serving.storage.test_store import BLOB, SCHEDULER_STATE, open_participants, reopen, update

FULL = "disk full"
Coordinate = Callable[[Path], Coordination]


def holding(run_dir: Path) -> Store:
    store = Store.open(run_dir)
    store.hold()
    store.begin_round(1, open_participants("a", "b"), SCHEDULER_STATE, 100.0)
    store.settle()
    return store


def test_update_counts_once_it_is_settled(tmp_path: Path) -> None:
    store = holding(tmp_path)
    for device_id in ("a", "b"):
        store.accept_update(update(device_id), BLOB, 101.0)
    assert store.is_accepted(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1))
    assert reopen(tmp_path).load_updates(1) == []
    assert not store.update_path(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1)).exists()

    store.settle()

    assert [one.key.device_id for one in reopen(tmp_path).load_updates(1)] == ["a", "b"]


def test_killed_before_it_was_settled(tmp_path: Path) -> None:
    holding(tmp_path).accept_update(update(), BLOB, 101.0)  # and its process is gone
    left = list((tmp_path / "updates/1").iterdir())
    assert len(left) == 1

    again = reopen(tmp_path)
    again.hold()
    opened = again.load_open_round()

    assert opened is not None
    assert opened.participants["a"].is_open
    assert list((tmp_path / "updates/1").iterdir()) == []


def test_files_are_durable_before_the_rows_that_tell_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = holding(tmp_path)
    store.accept_update(update(), BLOB, 101.0)

    def full(_files: HeldFiles) -> None:
        raise DiskFullError(FULL)

    monkeypatch.setattr(HeldFiles, "settle", full)
    with pytest.raises(DiskFullError):
        store.settle()
    store.close()
    again = reopen(tmp_path)
    assert not again.is_accepted(AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1))


def test_second_update_of_a_device_in_a_group_replaces_the_first(tmp_path: Path) -> None:
    store, other = holding(tmp_path), BLOB + b"!"
    store.accept_update(update(), BLOB, 101.0)
    store.accept_update(update(blob=other), other, 101.0)
    store.settle()
    assert [path.name for path in (tmp_path / "updates/1").iterdir()] == ["a.safetensors"]
    assert reopen(tmp_path).read_update(update(blob=other)) == other


def test_events_of_a_group_are_told_when_it_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    with contextlib.closing(EventLog(path)) as log:
        log.hold()
        log.write(UpdateAccepted(at=1.0, round_number=1, device_id="a"))
        assert list(reader.new_events()) == []
        log.settle()
        assert len(list(reader.new_events())) == 1
        log.write(UpdateAccepted(at=1.0, round_number=1, device_id="b"))
    assert list(reader.new_events()) == []


def test_no_verdict_for_what_did_not_reach_the_disk(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the moment when updates are made durable; a restart takes them, trained once."""
    fleet.config(tmp_path, broker.url, num_devices=1)
    settle = HeldFiles.settle

    def full(files: HeldFiles) -> None:
        if files._held:
            raise DiskFullError(FULL)
        settle(files)

    trained: list[int] = []

    def train(assignment: Assignment, blob: bytes) -> bytes:
        trained.append(assignment.key.round_number)
        return fleet.train(assignment, blob)

    with Device(broker.url, "a", train) as device:
        with monkeypatch.context() as patch:
            patch.setattr(HeldFiles, "settle", full)
            with pytest.raises(DiskFullError):
                coordinate(tmp_path).finish()
        time.sleep(0.3)
        assert device.heard(Verdict) == []
        assert not [e for e in EventReader(tmp_path / "events.jsonl").new_events() if isinstance(e, UpdateAccepted)]
        coordinate(tmp_path).finish()
    assert device.verdicts() == {1: True, 2: True}
    assert trained == [1, 2]


# ---- the cost of a step ----------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[tuple[Desk, Ledger]]:
    """A round of 300 devices, and the books of it."""
    limits = RoundLimits(
        run_id="run", num_rounds=1, num_devices=300, round_deadline_s=100, registration_timeout_s=50, rejoin_s=5
    )
    desk = Desk(limits)
    desk.answers_pulls = True
    desk.feed(*(DeviceRegistered(device_id=f"d{i:03}") for i in range(300)))
    assert desk.state.phase is Phase.COLLECTING
    with (
        contextlib.closing(Store.open(tmp_path)) as store,
        contextlib.closing(EventLog(tmp_path / "events.jsonl")) as events,
    ):
        store.begin_round(1, desk.state.participants.values(), SCHEDULER_STATE, 100.0)
        now = time.monotonic
        books = Ledger(store, events, run_id="run", clock=now, wall_clock=now, max_devices=300, axes=LORA_AXES)
        books.hold()
        yield desk, books


def test_a_step_looks_at_what_it_changed_alone(crowd: tuple[Desk, Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    desk, books = crowd
    looked_at: list[Participant | None] = []
    lasting = ledger._lasting

    def spy(participant: Participant | None) -> Participant | None:
        looked_at.append(participant)
        return lasting(participant)

    monkeypatch.setattr(ledger, "_lasting", spy)
    for number in range(10):
        before = desk.state
        after, _ = machine.advance(before, UpdateAnnounced(key=key(f"d{number:03}")))
        books.save(before, after, lambda: None)
    assert 0 < len(looked_at) <= 20


def test_scheduler_is_written_only_where_it_learnt(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times in two rounds: when arms were dealt, and when a round was over; before training nothing is learnt."""
    fleet.config(tmp_path, broker.url, num_devices=3)
    written: list[SchedulerState] = []
    save = rows.save_scheduler

    def spy(connection: sa.Connection, scheduler_state: SchedulerState | None) -> None:
        if scheduler_state is not None:
            written.append(scheduler_state)
        save(connection, scheduler_state)

    monkeypatch.setattr(rows, "save_scheduler", spy)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b"), Device(broker.url, "c"):
        running.finish()
    assert len(written) == 4
