"""An update's number of examples is at most what was registered, and send times outlive a coordinator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from broker_server.methods.method import AssignedWork
from broker_server.methods.pruning.schedule import Segment
from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.serving.coordinator.claims import most_examples
from broker_server.serving.coordinator.ledger import Ledger
from broker_server.serving.storage import schema
from broker_server.serving.storage.events import EventLog
from broker_server.serving.storage.rows import SchedulerState
from broker_server.serving.storage.store import Store
from edge_runtime.engine.data import _windows
from edge_runtime.formats.plan import PackedPlan
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import Assignment, AssignmentKey, Register
from edge_runtime.wire.work import Arm, ProbeWork
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.broker_server.serving.storage import test_store

Coordinate = Callable[[Path], Coordination]
Resumed = Callable[[float, float], Ledger]


def register(num_examples: int, data_bytes: int = 0) -> Register:
    return Register(
        device_id="a",
        session_id="s",
        capabilities=tiny.capabilities(),
        num_examples=num_examples,
        data_bytes=data_bytes,
    )


@pytest.mark.parametrize(
    ("said", "task", "most"),
    [
        (register(10), "text-classification", 10),
        (register(10, 10_000), "text-classification", 10),
        (register(0), "text-classification", 1),
        (register(10), "causal-lm", 10),
        (register(1, 100_000), "causal-lm", 1 + 100_004 // 32),
        (register(2**31 - 1, 2**40), "causal-lm", 1 + (2**40 + 4 * (2**31 - 1)) // 32),
    ],
    ids=str,
)
def test_what_a_device_may_count_with(said: Register, task: str, most: int) -> None:
    assert most_examples(said, task, 32) == most  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [[1], [9] * 40, [1, 1000, 3]], ids=str)
def test_no_file_has_more_windows_than_its_bytes_allow(lengths: list[int]) -> None:
    """At one byte a token, and four tokens that a tokenizer puts beside each line."""
    said = register(len(lengths), sum(lengths))
    for max_length in (2, 3, 8, 5000):
        offsets = _windows(sum(lengths) + 4 * len(lengths), max_length)
        assert offsets.size - 1 <= most_examples(said, "causal-lm", max_length)


def examples_of(run_dir: Path, round_number: int) -> dict[str, int | None]:
    record = Store.open(run_dir).load_round_records()[round_number]
    return {device.device_id: device.num_examples for device in record.devices}


@pytest.mark.parametrize("max_share", [0.5, 1.0])
def test_an_update_counts_with_what_was_registered(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, caplog: pytest.LogCaptureFixture, max_share: float
) -> None:
    """Also where the device registers far more in the middle of the round: that counts from the next one on.

    Then it has more than all others together, and counts with as many, unless the run knows no ceiling.
    """
    fleet.config(tmp_path, broker.url, num_devices=3, max_share=max_share)
    running = coordinate(tmp_path)

    def script(assignment: Assignment, blob: bytes) -> bytes:
        liar.say(msgspec.structs.replace(register(500), device_id="b", session_id="more"))
        return fleet.train(assignment, blob)

    with (
        Device(broker.url, "a"),
        Device(broker.url, "c"),
        Device(broker.url, "b", script, changes={"num_examples": 2**31 - 1}) as liar,
    ):
        running.finish()
    assert examples_of(tmp_path, 1) == {"a": 10, "b": 10, "c": 10}
    assert examples_of(tmp_path, 2) == {"a": 10, "b": 500, "c": 10}
    limited = [line for line in caplog.messages if "it counts with 20" in line]
    assert len(limited) == (max_share == 0.5)


# ---- send times ------------------------------------------------------------------------------------------------------

WORK = AssignedWork(
    work=ProbeWork(plan=PackedPlan(groups=()), form="softmax", batch_size=1, max_length=8),
    arm=Arm(pruning_ratio=0.0, rank=8),
    segments=(Segment(at_step=1, pruning_ratio=0.0),),
    start_sparsity=0.0,
    sparsity=0.0,
    num_steps=1,
    bytes_down=1,
    sent_at=1000.0,
    most_examples=10,
)
KEY = AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1)
OTHER = AssignmentKey(run_id="run", round_number=1, device_id="b", attempt=1)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run whose coordinator ended in round 1: two assignments went out, one update came."""
    store = Store.open(tmp_path)
    store.begin_round(1, test_store.open_participants("a", "b"), test_store.SCHEDULER_STATE, 999.0)
    for key in (KEY, OTHER):
        store.save_work(key, WORK)
    store.accept_update(test_store.update(), test_store.BLOB, 1007.0)
    accepted = Participant(device_id="a", attempt=1, arm=test_store.LARGE, outcome=Outcome.ACCEPTED)
    store.save_participants(1, [accepted], SchedulerState(scheduler="uniform", state={}), 8.0)
    store.close()
    return tmp_path


@pytest.fixture
def resumed(stopped: Path) -> Iterator[Resumed]:
    """A function that makes the books of a coordinator which goes on, at given monotonic and Unix seconds."""
    with contextlib.ExitStack() as stack:

        def resume(monotonic: float, wall: float) -> Ledger:
            store = stack.enter_context(contextlib.closing(Store.open(stopped)))
            events = stack.enter_context(contextlib.closing(EventLog(stopped / "events.jsonl")))
            ledger = Ledger(
                store,
                events,
                run_id="run",
                clock=lambda: monotonic,
                wall_clock=lambda: wall,
                max_devices=9,
                axes=LORA_AXES,
            )
            assert sorted(ledger.resume_round() or {}) == ["a", "b"]
            return ledger

        yield resume


def test_send_times_are_known_after_a_restart(resumed: Resumed) -> None:
    ledger = resumed(50.0, 1020.0)
    assert ledger.completion_s(KEY) == 7.0
    ledger.accept_update(test_store.update("b"), test_store.BLOB)
    assert ledger.completion_s(OTHER) == pytest.approx(20.0)


@pytest.mark.parametrize("wall", [5.0, 1e12], ids=["set back", "set forward"])
def test_a_clock_that_was_set_makes_them_unknown(resumed: Resumed, wall: float) -> None:
    ledger = resumed(50.0, wall)
    ledger.accept_update(test_store.update("b"), test_store.BLOB)
    assert ledger.completion_s(OTHER) is None


def test_an_assignment_that_never_went_out_has_none(stopped: Path, resumed: Resumed) -> None:
    store = Store.open(stopped)
    store.save_work(KEY, msgspec.structs.replace(WORK, sent_at=None))
    assert store.load_works("run", 1)[KEY].sent_at is None
    store.close()
    assert resumed(50.0, 1020.0).completion_s(KEY) is None


def test_an_update_that_no_message_may_be_any_more_counts_no_more(
    stopped: Path, resumed: Resumed, caplog: pytest.LogCaptureFixture
) -> None:
    """A store of an earlier release may hold an update with an endless time: its assignment is open again."""
    engine = sa.create_engine(f"sqlite:///{stopped / 'state.sqlite'}")
    with engine.begin() as connection:
        (message,) = connection.execute(sa.select(schema.updates.c.message)).one()
        fields = msgspec.msgpack.decode(message)
        fields["measurements"]["train_s"] = np.inf
        connection.execute(sa.update(schema.updates).values(message=msgspec.msgpack.encode(fields)))
    engine.dispose()
    ledger = resumed(50.0, 1020.0)
    participants = ledger.resume_round()
    assert participants is not None
    assert participants["a"].is_open
    assert any("no longer counts" in line for line in caplog.messages)
