"""Rounds of methods that ask a device once: its reply counts in all later rounds, wherever the device is."""

from __future__ import annotations

import dataclasses

import pytest

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    ChooseArms,
    DeviceFailed,
    DeviceOffline,
    DeviceRegistered,
    FailRun,
    FinishRun,
    Participant,
    Phase,
    RoundLimits,
    SendAssignment,
    UpdateAnnounced,
    UpdateRejected,
)
from edge_runtime.wire.messages import FailureReason
from tests.broker_server.round_desk import LARGE, LIMITS, A, B, Desk, key

ONCE = dataclasses.replace(LIMITS, asks_once=True)
C = "board-c"


def begun(limits: RoundLimits = ONCE) -> Desk:
    desk = Desk(limits)
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    return desk


def asked(desk: Desk) -> list[tuple[str, int]]:
    sent = [command for command in desk.commands if isinstance(command, SendAssignment)]
    return [(command.key.device_id, command.key.round_number) for command in sent]


def test_devices_are_asked_in_the_first_round_alone() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert desk.state.phase is Phase.FINISHED
    assert desk.commands[-1] == FinishRun()
    assert asked(desk) == [(A, 1), (B, 1)]
    rounds = [command for command in desk.commands if isinstance(command, Aggregate)]
    assert [(command.round_number, command.keys) for command in rounds] == [(1, (key(A), key(B))), (2, ()), (3, ())]
    assert desk.state.num_used_rounds == 3
    assert [c.device_ids for c in desk.commands if isinstance(c, ChooseArms)] == [(A, B), (), ()]


def test_devices_of_other_methods_are_asked_in_every_round() -> None:
    desk = begun(LIMITS)
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert asked(desk) == [(A, 1), (B, 1), (A, 2), (B, 2)]


def test_a_device_that_failed_is_asked_again_while_the_others_count_without() -> None:
    desk = begun()
    failed = DeviceFailed(key=key(B), reason=FailureReason.DISK_FULL, detail="full")
    desk.feed(UpdateAnnounced(key=key(A)), failed)
    assert asked(desk) == [(A, 1), (B, 1), (B, 2)]
    assert desk.state.num_standing == 1
    desk.feed(UpdateAnnounced(key=key(B, 2)))
    assert asked(desk) == [(A, 1), (B, 1), (B, 2)]
    assert desk.state.phase is Phase.FINISHED


def test_rounds_go_on_with_nobody_there() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), DeviceOffline(device_id=A), UpdateAnnounced(key=key(B)))
    assert desk.state.phase is Phase.FINISHED


def test_a_device_that_comes_later_is_asked_in_the_next_round() -> None:
    desk = Desk(dataclasses.replace(ONCE, num_devices=1))
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=C))
    assert asked(desk) == [(A, 1)]
    answer = desk.answer
    desk.answer = lambda command: None if isinstance(command, Aggregate) else answer(command)  # type: ignore[method-assign]
    desk.feed(UpdateAnnounced(key=key(A)))
    desk.feed(AggregationDone(round_number=1))
    assert asked(desk) == [(A, 1), (C, 2)]


def test_rounds_that_use_nothing_of_what_stands_end_the_run() -> None:
    desk = begun()
    answer = desk.answer

    def discard(command: object) -> object:
        if isinstance(command, Aggregate):
            return AggregationDone(round_number=command.round_number, discarded="aggregation failed: nan")
        return answer(command)  # type: ignore[arg-type]

    desk.answer = discard  # type: ignore[assignment, method-assign]
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    (failed,) = [command for command in desk.commands if isinstance(command, FailRun)]
    assert "2 updates were not used (aggregation failed: nan)" in failed.detail


def test_a_reply_that_is_refused_does_not_stand() -> None:
    desk = begun()
    desk.feed(UpdateRejected(key=key(A), detail="labels are 9"), UpdateAnnounced(key=key(B)))
    assert asked(desk)[2:] == [(A, 2)]


@pytest.mark.parametrize("participants", [None, {}])
def test_a_restart_needs_no_device_whose_reply_is_there(participants: dict[str, Participant] | None) -> None:
    desk = Desk(ONCE)
    desk.commands.clear()
    desk.take(machine.resume(ONCE, 1000.0, 1, participants, num_used_rounds=1, served=frozenset({A, B})))
    assert desk.state.phase is Phase.FINISHED
    assert not asked(desk)


@pytest.mark.parametrize("participants", [None, {}])
def test_a_restart_waits_for_a_device_whose_reply_is_gone(participants: dict[str, Participant] | None) -> None:
    desk = Desk(ONCE)
    desk.commands.clear()
    desk.take(machine.resume(ONCE, 1000.0, 1, participants, num_used_rounds=1, served=frozenset({A})))
    assert desk.state.phase is Phase.WAITING
    desk.feed(DeviceRegistered(device_id=A))
    assert desk.state.phase is Phase.WAITING
    desk.feed(DeviceRegistered(device_id=B))
    assert asked(desk) == [(B, 2)]


def test_a_restart_goes_on_with_a_round_that_had_asked_somebody() -> None:
    desk = Desk(ONCE)
    desk.commands.clear()
    asked_before = {B: Participant(device_id=B, attempt=1, arm=LARGE)}
    desk.take(machine.resume(ONCE, 1000.0, 1, asked_before, num_used_rounds=1, served=frozenset({A})))
    assert desk.state.phase is Phase.COLLECTING
    desk.feed(DeviceRegistered(device_id=B))
    assert asked(desk) == [(B, 2)]
    desk.tick(101)
    assert next(command.keys for command in desk.commands if isinstance(command, Aggregate)) == ()
