"""The waits of a round after a restart of the coordinator, and the lines of the log about them."""

from __future__ import annotations

import logging

import pytest

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    Aggregate,
    ChooseArms,
    DeviceHeard,
    DeviceOffline,
    DeviceRegistered,
    Event,
    Outcome,
    Participant,
    Phase,
    RunState,
    SendAssignment,
    Tick,
    UpdateStored,
)
from broker_server.serving.coordinator import patience
from tests.broker_server.round_desk import LARGE, LIMITS, Desk, key


def resumed(**outcomes: Outcome | None) -> Desk:
    """Round 2 goes on at 1000 s; LIMITS: 50 s to register, 5 s to come back, the round's deadline is after 100 s."""
    participants = {
        device_id: Participant(device_id=device_id, attempt=1, arm=LARGE, outcome=outcome)
        for device_id, outcome in outcomes.items()
    }
    desk = Desk()
    desk.commands.clear()
    desk.take(machine.resume(LIMITS, 1000.0, 1, participants, num_used_rounds=1))
    return desk


def is_closed(desk: Desk) -> bool:
    return bool(desk.sent(Aggregate))


def test_device_that_was_killed_while_the_coordinator_was_away_is_lost_soon() -> None:
    desk = resumed(a=None, b=None)
    desk.tick(2)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True), UpdateStored(key=key("a", 2)))
    desk.tick(4.9)
    assert not is_closed(desk)
    desk.tick(0.2)
    assert desk.sent(Aggregate) == [Aggregate(round_number=2, keys=(key("a", 2),))]


def test_device_whose_update_was_accepted_before_is_a_witness_too() -> None:
    desk = resumed(a=Outcome.ACCEPTED, b=None)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(5)
    assert is_closed(desk)


def test_device_that_is_back_in_time_gets_its_assignment_again() -> None:
    desk = resumed(a=None, b=None)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(3)
    desk.feed(DeviceRegistered(device_id="b"), DeviceHeard(device_id="a"), DeviceHeard(device_id="b"))
    desk.tick(40)
    assert {c.key.device_id for c in desk.commands if isinstance(c, SendAssignment)} == {"a", "b"}
    assert not is_closed(desk)


def test_device_that_comes_later_is_taken_back_while_another_trains() -> None:
    desk = resumed(a=None, b=None)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(10)
    assert desk.state.participants["b"].outcome is Outcome.LOST
    desk.feed(DeviceRegistered(device_id="b"))
    desk.feed(UpdateStored(key=key("a", 2)), UpdateStored(key=key("b", 2)))
    assert desk.sent(Aggregate) == [Aggregate(round_number=2, keys=(key("a", 2), key("b", 2)))]


def test_fleet_that_was_started_anew_has_time_to_start() -> None:
    """As after ``fedspine run --resume``: no process stayed, and on a busy machine they come one after the other."""
    desk = resumed(a=None, b=None)
    desk.feed(DeviceRegistered(device_id="a"), UpdateStored(key=key("a", 2)))
    desk.tick(49)
    assert not is_closed(desk)
    desk.tick(1)
    assert is_closed(desk)


def test_second_witness_does_not_begin_the_wait_anew() -> None:
    desk = resumed(a=None, b=None, c=None)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(4)
    desk.feed(DeviceRegistered(device_id="b", has_stayed=True))
    desk.tick(1)
    assert desk.state.participants["c"].outcome is Outcome.LOST


def test_restart_between_rounds_does_not_wait_for_the_dead_either() -> None:
    desk = Desk()
    desk.commands.clear()
    desk.take(machine.resume(LIMITS, 1000.0, 1, None, num_used_rounds=1))
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(4)
    assert desk.state.phase is Phase.WAITING
    desk.tick(1)
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=2, device_ids=("a",))]


def test_restart_with_all_updates_does_not_wait_for_the_dead_in_the_next_round() -> None:
    desk = resumed(a=Outcome.ACCEPTED, b=Outcome.ACCEPTED)
    desk.feed(DeviceRegistered(device_id="a", has_stayed=True))
    desk.tick(5)
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=3, device_ids=("a",))]


# ---- the log ---------------------------------------------------------------------------------------------------------


def step(state: RunState, event: Event) -> RunState:
    after, _ = machine.advance(state, event)
    patience.say(event, state, after)
    return after


def test_log_says_for_whom_a_round_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = resumed(a=None, b=None, c=None).state
    patience.say_at_start(state)
    state = step(state, DeviceRegistered(device_id="a", has_stayed=True))
    state = step(state, DeviceOffline(device_id="a", detail="connection lost"))
    state = step(state, Tick(now=1004.0))
    step(state, Tick(now=1006.0))
    assert [record.message for record in caplog.records if record.name == patience.__name__] == [
        "round 2 waits for a, b, c to register: up to 50 s, and up to 5 s once a device that kept running is back",
        "round 2: a is back, so it waits 5 s more for b, c",
        "round 2 waits 5 s for a: connection lost",
        "round 2 goes on without a, b, c: they did not answer in time",
    ]


def test_log_does_not_name_a_whole_fleet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    patience.say_at_start(resumed(**{f"d{number:04}": None for number in range(1000)}).state)
    assert "d0000, d0001, d0002, d0003, d0004, d0005, d0006, d0007 and 992 more" in caplog.text


def test_log_says_nothing_where_nobody_is_awaited(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    patience.say_at_start(resumed(a=Outcome.ACCEPTED).state)
    assert not [record for record in caplog.records if record.name == patience.__name__]
