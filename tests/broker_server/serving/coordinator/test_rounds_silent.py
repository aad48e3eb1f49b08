"""Rounds with devices that register and say nothing, or never answer: those that work are served in every round."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.methods.rounds.silence import ANSWER_S, QUIET_S
from broker_server.methods.rounds.types import (
    ChooseArms,
    DeviceHeard,
    DeviceOffline,
    DeviceRegistered,
    Outcome,
    Phase,
    SendAssignment,
    Tick,
    UpdateAnnounced,
)
from broker_server.serving.storage.events import EVENTS_FILE, EventReader, RoundStarted
from broker_server.serving.storage.store import Store
from edge_runtime.bounds import limits
from edge_runtime.link.in_process import InProcessLink
from edge_runtime.wire import topics
from edge_runtime.wire.messages import Register, encode_message
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import FLEET, Device
from tests.broker_server.links import InProcess
from tests.broker_server.round_desk import LIMITS, A, B, Desk, begun, key
from tests.waiting import wait_until

GHOSTS = [f"ghost-{i}" for i in range(20)]


def register(desk: Desk, *device_ids: str) -> None:
    desk.feed(*(DeviceRegistered(device_id=device_id) for device_id in device_ids))


def answer(desk: Desk, *device_ids: str) -> None:
    number = desk.state.round_number
    desk.feed(*(UpdateAnnounced(key=key(device_id, number)) for device_id in device_ids))


def asked(desk: Desk, round_number: int) -> set[str]:
    sent = [c for c in desk.commands if isinstance(c, SendAssignment)]
    return {c.key.device_id for c in sent if c.key.round_number == round_number}


def test_silence_of_the_coordinator_itself_loses_no_device() -> None:
    """It had no connection, or was busy with a large model: devices answered, and were not heard."""
    desk = begun()
    for _ in range(3):
        desk.feed(Tick(now=desk.state.now + ANSWER_S, is_deaf=True))
    desk.tick(ANSWER_S - 1)
    assert all(participant.is_open for participant in desk.state.participants.values())
    answer(desk, A, B)
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_silent_device_is_lost_long_before_the_deadline() -> None:
    desk = begun()
    answer(desk, A)
    desk.tick(ANSWER_S - 1)
    assert desk.state.phase is Phase.COLLECTING
    desk.tick(1)
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.LOST}
    assert desk.state.round_number == 2


def test_device_that_said_anything_has_until_the_deadline() -> None:
    desk = begun()
    desk.feed(DeviceHeard(device_id=B))
    answer(desk, A)
    desk.tick(LIMITS.round_deadline_s - 1)
    assert desk.state.round_number == 1
    answer(desk, B)
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_silent_device_counts_as_soon_as_it_says_something() -> None:
    desk = begun()
    desk.feed(DeviceHeard(device_id=A))
    desk.tick(ANSWER_S)
    assert desk.state.participants[B].outcome is Outcome.LOST
    register(desk, B)  # what the translator makes of anything that it says
    answer(desk, A, B)
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_ghosts_cost_one_round_a_moment_and_later_ones_nothing() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_devices=22))
    register(desk, *GHOSTS, A, B)
    answer(desk, A, B)
    desk.tick(ANSWER_S)
    assert desk.state.round_number == 2
    assert asked(desk, 2) == {A, B}
    answer(desk, A, B)
    assert asked(desk, 3) == {A, B}


def test_ghosts_do_not_take_the_place_of_devices_that_work() -> None:
    """They come first, and the round begins with them alone: the others are called in, and it ends with those."""
    desk = Desk()
    register(desk, *GHOSTS, A, B)
    assert asked(desk, 1) == {"ghost-0", "ghost-1"}
    desk.tick(QUIET_S)
    assert asked(desk, 1) >= {A, B}
    desk.feed(DeviceHeard(device_id=A), DeviceHeard(device_id=B))
    answer(desk, A, B)
    desk.tick(QUIET_S)
    assert desk.state.round_number == 2
    outcomes = desk.outcomes()
    assert {device_id for device_id, outcome in outcomes.items() if outcome is Outcome.ACCEPTED} == {A, B}
    assert asked(desk, 2) == {A, B}


def test_others_are_called_in_once() -> None:
    desk = Desk()
    register(desk, *GHOSTS)
    for _ in range(8):
        desk.tick(0.9)
    assert len([c for c in desk.commands if isinstance(c, ChooseArms)]) == 2


def test_nobody_is_called_into_a_round_of_devices_that_work() -> None:
    desk = begun()
    desk.feed(DeviceHeard(device_id=A), DeviceHeard(device_id=B))
    register(desk, "late")
    desk.tick(QUIET_S + 1)
    assert asked(desk, 1) == set()  # the assignments of round 1 went out before


def test_ghosts_that_register_again_wait_out_more_and_more_rounds() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=12, num_devices=3))
    register(desk, A, B, "ghost")
    rounds_with_ghost = []
    for number in range(1, 11):
        if "ghost" in desk.state.participants:
            rounds_with_ghost.append(number)
        answer(desk, A, B)
        if desk.state.round_number == number:
            desk.tick(ANSWER_S)
            register(desk, "ghost")
    assert desk.state.round_number == 11
    assert rounds_with_ghost[0] == 1
    assert len(rounds_with_ghost) <= 4


def test_device_that_speaks_and_never_answers_waits_out_rounds() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=9))
    register(desk, A, B)
    with_b = []
    for number in range(1, 7):
        if B in desk.state.participants:
            with_b.append(number)
            desk.feed(DeviceHeard(device_id=B))
        answer(desk, A)
        if desk.state.round_number == number:
            desk.tick(LIMITS.round_deadline_s)
    assert with_b[:2] == [1, 2]  # one late round may happen to anybody
    assert 3 not in with_b
    assert len(with_b) <= 4


def test_answer_forgives_what_was_missed() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=9))
    register(desk, A, B)
    for number in (1, 2, 3, 4, 5):
        desk.feed(DeviceHeard(device_id=B))
        answer(desk, A)
        if number % 2:
            desk.tick(LIMITS.round_deadline_s)
        else:
            answer(desk, B)
    assert asked(desk, 6) == {A, B}


def test_where_nobody_else_is_there_devices_are_asked_all_the_same() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=9))
    register(desk, A, B)
    for _ in range(2):
        desk.feed(DeviceHeard(device_id=A), DeviceHeard(device_id=B))
        desk.tick(LIMITS.round_deadline_s)
    assert desk.state.round_number == 3
    assert set(desk.state.participants) == {A, B}


def test_last_words_that_are_kept_are_bounded() -> None:
    desk = Desk()
    for i in range(1000):
        desk.feed(DeviceOffline(device_id=f"d{i}", detail="gone"))
    assert len(desk.state.farewells) == 64


# ---- a whole coordinator ---------------------------------------------------------------------------------------------


def haunt(link: InProcessLink) -> bool:
    """Register devices that are not there."""
    for name in GHOSTS:
        message = Register(device_id=name, session_id="s", capabilities=tiny.capabilities(), num_examples=1)
        link.publish(topics.up(FLEET, name, "register"), encode_message(message))
    return True


def has_begun(run_dir: Path) -> bool:
    """Return whether a round has."""
    return any(isinstance(event, RoundStarted) for event in EventReader(run_dir / EVENTS_FILE).new_events())


def test_honest_devices_are_served_in_every_round_beside_ghosts(
    broker: InProcess, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_server.methods.rounds.silence.QUIET_S", 1.0)
    fleet.config(tmp_path, broker.url)
    running = coordinate(tmp_path)
    link = broker.broker.open_link(
        client_id="haunted",
        subscriptions=(),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
    )
    with contextlib.closing(link):
        link.connect()
        wait_until(lambda: haunt(link) and has_begun(tmp_path))
        with Device(broker.url, "x") as _, Device(broker.url, "y"):
            running.finish(40)
    with contextlib.closing(Store.open(tmp_path)) as store:
        records = store.load_round_records()[1:]
    assert len(records) == 2
    for record in records:
        outcomes = {d.device_id: d.outcome for d in record.devices}
        assert outcomes["x"] == outcomes["y"] == "accepted"
    assert {d.device_id for d in records[0].devices} > {"x", "y"}
    assert {d.device_id for d in records[1].devices} == {"x", "y"}, "no ghost is asked again"
    assert records[0].seconds < ANSWER_S
