"""Rounds whose updates could not be used: they count as empty, and a run of them only ends."""

from __future__ import annotations

import dataclasses

from broker_server.rounds.types import (
    Aggregate,
    AggregationDone,
    Command,
    DeviceRegistered,
    Event,
    FailRun,
    Phase,
    UpdateAnnounced,
)
from tests.broker_server.round_desk import LIMITS, A, Desk, key


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
    assert "1 updates were not used (too large)" in failed.detail
