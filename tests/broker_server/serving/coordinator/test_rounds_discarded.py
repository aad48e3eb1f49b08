"""Rounds whose updates could not be used: they count as empty, and a run of them only ends."""

from __future__ import annotations

import dataclasses

import pytest

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    Command,
    DeviceFailed,
    DeviceRegistered,
    Event,
    FailRun,
    FinishRound,
    FinishRun,
    Phase,
    Tick,
    UpdateAnnounced,
    UpdateRejected,
)
from edge_runtime.wire.messages import FailureReason
from tests.broker_server.round_desk import LIMITS, A, B, Desk, key


class Discarding(Desk):
    """Discards the updates of chosen rounds."""

    discarded: frozenset[int] = frozenset()

    def answer(self, command: Command) -> Event | None:
        if isinstance(command, Aggregate) and command.round_number in self.discarded:
            return AggregationDone(round_number=command.round_number, discarded="too large")
        return super().answer(command)


def played(*discarded: int, num_rounds: int = 9) -> Discarding:
    desk = Discarding(dataclasses.replace(LIMITS, num_rounds=num_rounds, num_devices=1))
    desk.discarded = frozenset(discarded)
    desk.feed(DeviceRegistered(device_id=A))
    for number in range(1, num_rounds + 1):
        desk.feed(UpdateAnnounced(key=key(A, number)))
    return desk


def test_run_goes_on_after_a_discarded_round() -> None:
    assert played(2).state.phase is Phase.FINISHED
    assert played(1, 2, 4, 5).state.phase is Phase.FINISHED


def test_discarded_rounds_in_a_row_end_the_run_and_say_why() -> None:
    desk = played(2, 3, 4)
    assert desk.state.phase is Phase.FAILED
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert failed.detail.startswith("3 rounds in a row without an update that could be used: ")
    assert "1 update was not used (too large)" in failed.detail


# ---- runs too short for three empty rounds in a row ------------------------------------------------------------------


@pytest.mark.parametrize("num_rounds", [1, 2])
@pytest.mark.parametrize("way", ["failed", "rejected", "discarded", "silent"])
def test_run_without_any_usable_update_fails_however_few_its_rounds(num_rounds: int, way: str) -> None:
    desk = Discarding(dataclasses.replace(LIMITS, num_rounds=num_rounds, num_devices=1))
    desk.discarded = frozenset(range(1, num_rounds + 1))
    desk.answers_pulls = way == "discarded"
    desk.feed(DeviceRegistered(device_id=A))
    for number in range(1, num_rounds + 1):
        if way == "failed":
            reason = FailureReason.ARTIFACT_UNREACHABLE
            desk.feed(DeviceFailed(key=key(A, number), reason=reason, detail="connection refused"))
        elif way == "rejected":
            desk.feed(UpdateRejected(key=key(A, number), detail="too large"))
        elif way == "discarded":
            desk.feed(UpdateAnnounced(key=key(A, number)))
        else:
            desk.tick(200)
            desk.feed(DeviceRegistered(device_id=A), Tick(now=desk.state.now))
    assert desk.state.phase is Phase.FAILED
    assert not desk.sent(FinishRun)
    assert [c.round_number for c in desk.commands if isinstance(c, FinishRound)] == list(range(num_rounds + 1))
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert failed.detail.startswith("no update of the ")
    assert A in failed.detail or "too large" in failed.detail


def test_run_whose_updates_were_all_beyond_bounds_names_the_learning_rate() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=1, num_devices=1))
    desk.feed(DeviceRegistered(device_id=A))
    desk.feed(UpdateRejected(key=key(A), detail="B A has the norm 7e8", reason=FailureReason.DIVERGED))
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert failed.detail.startswith("training diverged in round 1: lower the learning rate; no update of the round")


def test_one_usable_round_is_enough() -> None:
    assert played(1, 3, num_rounds=3).sent(FinishRun) == [FinishRun()]


def test_restart_after_the_last_round_tells_the_same() -> None:
    _, commands = machine.resume(LIMITS, 0.0, 3, None, num_used_rounds=0)
    assert [type(command) for command in commands] == [FailRun]
    _, commands = machine.resume(LIMITS, 0.0, 3, None, num_used_rounds=1)
    assert commands == (FinishRun(),)


def test_updates_of_earlier_sessions_count() -> None:
    desk = Discarding(dataclasses.replace(LIMITS, num_rounds=3, num_devices=1))
    desk.discarded = frozenset({3})
    desk.take(machine.resume(desk.state.limits, 0.0, 2, None, num_used_rounds=1))
    desk.feed(DeviceRegistered(device_id=A), UpdateAnnounced(key=key(A, 3)))
    assert desk.state.phase is Phase.FINISHED


@pytest.mark.parametrize("reason", [FailureReason.ARM_INFEASIBLE, FailureReason.ARTIFACT_CORRUPTED])
def test_run_that_failed_says_why_where_all_devices_agree(reason: FailureReason) -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=1))
    desk.cheaper = {A: False, B: False}
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    for device_id in (A, B):
        desk.feed(DeviceFailed(key=key(device_id), reason=reason, detail="no"))
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert failed.reason is reason


def test_run_that_failed_for_several_reasons_names_none() -> None:
    desk = Desk(dataclasses.replace(LIMITS, num_rounds=1))
    desk.cheaper = {A: False, B: False}
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    desk.feed(DeviceFailed(key=key(A), reason=FailureReason.ARM_INFEASIBLE, detail="no"))
    desk.feed(DeviceFailed(key=key(B), reason=FailureReason.INTERNAL, detail="no"))
    (failed,) = desk.sent(FailRun)
    assert isinstance(failed, FailRun)
    assert failed.reason is None
