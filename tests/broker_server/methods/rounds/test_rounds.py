"""Rounds: each thing that can happen to a round, and what is done about it."""

from __future__ import annotations

import dataclasses

import pytest

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    Aggregate,
    AnswerOldUpdate,
    ChooseArmAgain,
    ChooseArms,
    DeviceFailed,
    DeviceOffline,
    DeviceRegistered,
    Evaluate,
    EvaluationDone,
    Event,
    FailRun,
    FinishRound,
    FinishRun,
    Outcome,
    Participant,
    Phase,
    PullUpdate,
    SendAssignment,
    SendCancel,
    SendVerdict,
    Tick,
    UpdateAnnounced,
    UpdateLate,
    UpdateRejected,
    UpdateStored,
)
from edge_runtime.wire.messages import AssignmentKey, FailureReason
from tests.broker_server.round_desk import LARGE, LIMITS, SMALL, A, B, Desk, begun, key

# ---- the good case ---------------------------------------------------------------------------------------------------


def test_run_of_three_rounds() -> None:
    desk = Desk()
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    for number in (1, 2, 3):
        desk.feed(UpdateAnnounced(key=key(A, number)), UpdateAnnounced(key=key(B, number)))
    assert desk.state.phase is Phase.FINISHED
    assert [c.round_number for c in desk.commands if isinstance(c, FinishRound)] == [0, 1, 2, 3]
    assert [c.is_last for c in desk.commands if isinstance(c, Evaluate)] == [False, False, False, True]
    assert [c.keys for c in desk.commands if isinstance(c, Aggregate)] == [
        (key(A, number), key(B, number)) for number in (1, 2, 3)
    ]
    assert desk.commands[-1] == FinishRun()


def test_nothing_begins_before_the_adapter_was_evaluated() -> None:
    state, commands = machine.start(LIMITS, 0.0)
    assert commands == (Evaluate(round_number=0, is_last=False),)
    state, commands = machine.advance(state, DeviceRegistered(device_id=A))
    state, commands = machine.advance(state, DeviceRegistered(device_id=B))
    assert commands == ()
    state, commands = machine.advance(state, EvaluationDone(round_number=0))
    assert ChooseArms(round_number=1, device_ids=(A, B)) in commands


def test_verdict_comes_before_anything_that_follows_from_the_update() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    kinds = [type(command) for command in desk.commands]
    assert kinds[:5] == [PullUpdate, SendVerdict, PullUpdate, SendVerdict, Aggregate]


# ---- waiting for devices ---------------------------------------------------------------------------------------------


def test_first_round_waits_for_all_devices_but_not_for_ever() -> None:
    desk = Desk()
    desk.feed(DeviceRegistered(device_id=A))
    desk.tick(49)
    assert desk.state.phase is Phase.WAITING
    desk.tick(2)
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=1, device_ids=(A,))]


def test_no_device_at_all_ends_the_run_with_what_they_said() -> None:
    desk = Desk()
    desk.feed(DeviceRegistered(device_id=A), DeviceOffline(device_id=A, detail="too little memory"))
    desk.tick(60)
    assert desk.state.phase is Phase.FAILED
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert "no device for round 1 within 50 s" in failed.detail
    assert "board-a: too little memory" in failed.detail


def test_late_device_takes_part_from_the_next_round() -> None:
    desk = begun()
    desk.feed(DeviceRegistered(device_id="late"))
    assert desk.commands == []
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=2, device_ids=(A, B, "late"))]


def between_rounds() -> Desk:
    """Both devices have answered in round 1, and one fell away before round 2 began."""
    desk = begun()
    desk.answers_pulls = False
    desk.feed(UpdateStored(key=key(A)), DeviceOffline(device_id=A), UpdateStored(key=key(B)))
    return desk


def test_later_round_waits_a_moment_for_the_devices_that_answered() -> None:
    desk = between_rounds()
    assert (desk.state.phase, desk.state.round_number) == (Phase.WAITING, 2)
    desk.tick(4.9)
    desk.feed(DeviceRegistered(device_id=A))
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=2, device_ids=(A, B))]


def test_device_that_is_really_gone_does_not_hold_up_the_rounds() -> None:
    desk = between_rounds()
    desk.tick(4.9)
    assert desk.state.phase is Phase.WAITING
    desk.tick(0.2)
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=2, device_ids=(B,))]
    desk.feed(UpdateStored(key=key(B, 2)))
    assert desk.sent(ChooseArms)[1:] == [ChooseArms(round_number=3, device_ids=(B,))]


def test_later_round_without_any_device_waits_as_long_as_the_first() -> None:
    desk = between_rounds()
    desk.feed(DeviceOffline(device_id=B))
    desk.tick(49)
    assert desk.state.phase is Phase.WAITING
    desk.feed(DeviceRegistered(device_id=A))
    assert desk.sent(ChooseArms) == [ChooseArms(round_number=2, device_ids=(A,))]


# ---- devices that go and come ----------------------------------------------------------------------------------------


def test_device_back_within_the_grace_gets_its_assignment_again() -> None:
    desk = begun()
    desk.feed(DeviceOffline(device_id=A))
    desk.tick(4)
    desk.feed(DeviceRegistered(device_id=A))
    (again,) = desk.sent(SendAssignment)
    assert isinstance(again, SendAssignment)
    assert (again.key, again.arm, again.deadline_s) == (key(A), LARGE, 96)
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_device_that_stays_away_costs_the_round_only_the_grace() -> None:
    desk = begun()
    desk.feed(DeviceOffline(device_id=A), UpdateAnnounced(key=key(B)))
    desk.tick(4.9)
    assert desk.state.phase is Phase.COLLECTING
    desk.tick(0.2)
    assert desk.outcomes() == {A: Outcome.LOST, B: Outcome.ACCEPTED}
    assert desk.state.round_number == 2


def test_lost_device_that_comes_back_while_the_round_goes_on_still_counts() -> None:
    desk = begun()
    desk.feed(DeviceOffline(device_id=A))
    desk.tick(10)
    assert desk.state.participants[A].outcome is Outcome.LOST
    desk.feed(DeviceRegistered(device_id=A))
    assert desk.sent(SendAssignment)
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_update_of_a_lost_device_still_counts() -> None:
    desk = begun()
    desk.feed(DeviceOffline(device_id=A))
    desk.tick(10)
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_deadline_cancels_who_is_late() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(B)))
    desk.tick(100)
    assert desk.outcomes() == {A: Outcome.TIMED_OUT, B: Outcome.ACCEPTED}
    assert [c.key for c in desk.commands if isinstance(c, SendCancel)] == [key(A)]


# ---- updates that are repeated, late or wrong ------------------------------------------------------------------------


def test_repeated_update_is_confirmed_again_and_counts_once() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    assert len([c for c in desk.commands if isinstance(c, SendVerdict) and c.accepted and c.key == key(A)]) == 2
    (aggregate,) = desk.sent(Aggregate)
    assert isinstance(aggregate, Aggregate)
    assert aggregate.keys == (key(A), key(B))


def test_update_of_a_closed_round_is_looked_up() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)), UpdateAnnounced(key=key(A)))
    assert desk.commands[-1] == AnswerOldUpdate(key=key(A))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (key("stranger"), "no assignment"),
        (key(A, attempt=2), "attempt 2"),
        (key(A, round_number=7), "has not begun"),
    ],
    ids=["stranger", "attempt", "round"],
)
def test_update_that_was_not_asked_for_is_refused(wrong: AssignmentKey, said: str) -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=wrong))
    (verdict,) = desk.commands
    assert isinstance(verdict, SendVerdict)
    assert not verdict.accepted
    assert said in verdict.detail


def test_rejected_update_is_told_and_does_not_count() -> None:
    desk = begun()
    desk.feed(UpdateRejected(key=key(A), detail="not finite"), UpdateAnnounced(key=key(B)))
    assert SendVerdict(key=key(A), accepted=False, detail="not finite") in desk.commands
    assert desk.outcomes() == {A: Outcome.REJECTED, B: Outcome.ACCEPTED}


def test_update_that_is_rejected_too_late_is_answered_all_the_same() -> None:
    desk = begun()
    desk.feed(UpdateAnnounced(key=key(A)), UpdateAnnounced(key=key(B)))
    desk.feed(UpdateRejected(key=key(A), detail="not finite"))
    assert desk.commands[-1] == AnswerOldUpdate(key=key(A))


# ---- failures --------------------------------------------------------------------------------------------------------


def failure(device_id: str, attempt: int = 1, reason: FailureReason = FailureReason.ARM_INFEASIBLE) -> Event:
    return DeviceFailed(key=key(device_id, attempt=attempt), reason=reason, detail="needs more")


def test_arm_that_is_too_large_is_followed_by_a_cheaper_one_in_the_same_round() -> None:
    desk = begun()
    desk.feed(failure(A))
    (again,) = desk.sent(SendAssignment)
    assert isinstance(again, SendAssignment)
    assert (again.key, again.arm) == (key(A, attempt=2), SMALL)
    desk.feed(UpdateAnnounced(key=key(A, attempt=2)), UpdateAnnounced(key=key(B)))
    assert desk.outcomes() == {A: Outcome.ACCEPTED, B: Outcome.ACCEPTED}


def test_without_a_cheaper_arm_the_device_sits_out() -> None:
    desk = begun()
    desk.cheaper[A] = False
    desk.feed(failure(A), UpdateAnnounced(key=key(B)))
    assert desk.outcomes() == {A: Outcome.FAILED, B: Outcome.ACCEPTED}


def test_attempts_of_one_round_are_bounded() -> None:
    desk = begun()
    for attempt in range(1, machine.MAX_ATTEMPTS + 1):
        desk.feed(failure(A, attempt))
    desk.feed(UpdateAnnounced(key=key(B)))
    assert desk.outcomes()[A] is Outcome.FAILED


def test_other_failures_are_final() -> None:
    desk = begun()
    desk.feed(failure(A, reason=FailureReason.DISK_FULL), UpdateAnnounced(key=key(B)))
    assert not desk.sent(ChooseArmAgain)
    assert desk.outcomes() == {A: Outcome.FAILED, B: Outcome.ACCEPTED}


def test_round_without_an_update_keeps_the_adapter_and_the_run_goes_on() -> None:
    desk = begun()
    desk.tick(100)
    (aggregate,) = desk.sent(Aggregate)
    assert aggregate == Aggregate(round_number=1, keys=())
    assert (desk.state.phase, desk.state.round_number) == (Phase.COLLECTING, 2)


def test_rounds_without_updates_in_a_row_end_the_run_with_the_reasons() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=9))
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    for number in (1, 2, 3):
        desk.feed(*(DeviceFailed(key=key(d, number), reason=FailureReason.INTERNAL, detail="broken") for d in (A, B)))
    assert desk.state.phase is Phase.FAILED
    failed = desk.commands[-1]
    assert isinstance(failed, FailRun)
    assert "3 rounds in a row" in failed.detail
    assert "board-a: failed (internal: broken)" in failed.detail
    assert [c.round_number for c in desk.commands if isinstance(c, FinishRound)] == [0, 1, 2, 3]


def test_one_update_in_between_starts_the_count_anew() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=9))
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    desk.tick(100)
    desk.tick(100)
    desk.feed(UpdateAnnounced(key=key(A, 3)))
    desk.tick(100)
    desk.tick(100)
    desk.tick(100)
    assert desk.state.phase is Phase.COLLECTING
    assert desk.state.num_empty_rounds == 2


# ---- restart ---------------------------------------------------------------------------------------------------------


def participants(**outcomes: Outcome | None) -> dict[str, Participant]:
    return {
        device_id: Participant(device_id=device_id, attempt=1, arm=LARGE, outcome=outcome)
        for device_id, outcome in outcomes.items()
    }


def test_restart_goes_on_with_the_round() -> None:
    state, commands = machine.resume(LIMITS, 1000.0, 1, participants(a=Outcome.ACCEPTED, b=None), num_used_rounds=1)
    assert (state.phase, state.round_number, commands) == (Phase.COLLECTING, 2, ())
    state, commands = machine.advance(state, DeviceRegistered(device_id="b"))
    assert [c.key for c in commands if isinstance(c, SendAssignment)] == [key("b", 2)]
    state, commands = machine.advance(state, UpdateStored(key=key("b", 2)))
    assert Aggregate(round_number=2, keys=(key("a", 2), key("b", 2))) in commands


def test_restart_gives_devices_as_long_as_at_the_start() -> None:
    state, _ = machine.resume(LIMITS, 1000.0, 1, participants(a=Outcome.ACCEPTED, b=None), num_used_rounds=1)
    state, commands = machine.advance(state, Tick(now=1049))
    assert commands == ()
    state, commands = machine.advance(state, Tick(now=1050))
    assert Aggregate(round_number=2, keys=(key("a", 2),)) in commands


def test_restart_with_all_updates_aggregates_at_once() -> None:
    _, commands = machine.resume(LIMITS, 0.0, 0, participants(a=Outcome.ACCEPTED, b=Outcome.FAILED), num_used_rounds=0)
    assert commands == (Aggregate(round_number=1, keys=(key("a"),)),)


def test_round_after_a_restarted_one_waits_for_the_devices_that_were_there() -> None:
    desk = Desk()
    desk.take(
        machine.resume(LIMITS, 0.0, 0, participants(a=Outcome.ACCEPTED, b=None, c=Outcome.LOST), num_used_rounds=0)
    )
    desk.feed(DeviceRegistered(device_id="b"), UpdateAnnounced(key=key("b")))
    assert (desk.state.phase, desk.state.round_number) == (Phase.WAITING, 2)
    desk.feed(DeviceRegistered(device_id="a"))
    assert desk.sent(ChooseArms)[-1] == ChooseArms(round_number=2, device_ids=("a", "b"))


def test_restart_between_rounds_waits_for_devices() -> None:
    state, commands = machine.resume(LIMITS, 0.0, 2, None, num_used_rounds=2)
    assert (state.phase, state.round_number, commands) == (Phase.WAITING, 3, ())


def test_restart_of_a_finished_run_says_so() -> None:
    state, commands = machine.resume(LIMITS, 0.0, 3, None, num_used_rounds=3)
    assert (state.phase, commands) == (Phase.FINISHED, (FinishRun(),))


# ---- the virtual clock of an emulated fleet --------------------------------------------------------------------------


def test_late_update_on_the_virtual_clock_is_a_timeout_and_its_device_is_told() -> None:
    desk = begun()
    desk.answers_pulls = False
    desk.feed(UpdateAnnounced(key=key(A)), UpdateLate(key=key(A), detail="9 s, the deadline is 5 s (emulated)"))
    assert desk.sent(SendVerdict) == [
        SendVerdict(key=key(A), accepted=False, detail="9 s, the deadline is 5 s (emulated)")
    ]
    assert desk.sent(Aggregate) == []
    desk.feed(UpdateStored(key=key(B)))
    assert desk.outcomes() == {A: Outcome.TIMED_OUT, B: Outcome.ACCEPTED}


def test_round_of_late_updates_only_is_empty_but_goes_on() -> None:
    desk = begun()
    desk.answers_pulls = False
    desk.feed(UpdateLate(key=key(A), detail="late"), UpdateLate(key=key(B), detail="late"))
    assert desk.sent(Aggregate) == [Aggregate(round_number=1, keys=())]
    assert desk.state.round_number == 2


def test_late_update_counts_as_late_only_once() -> None:
    desk = begun()
    desk.answers_pulls = False
    desk.feed(UpdateLate(key=key(A), detail="late"), UpdateAnnounced(key=key(A)), UpdateLate(key=key(A), detail="late"))
    assert [c.accepted for c in desk.commands if isinstance(c, SendVerdict)] == [False, False, False]
    assert desk.sent(PullUpdate) == []
    assert desk.state.participants[A].outcome is Outcome.TIMED_OUT
