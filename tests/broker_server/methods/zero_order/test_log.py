"""The log: bounded, complete from a round on that it says, and damaged ones refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from broker_server.errors import AggregationError
from broker_server.methods.zero_order.log import MAX_BYTES, MAX_ROUNDS, NAME, Log
from edge_runtime.wire.work import LoggedRound


def logged(number: int, num_bytes: int = 16) -> LoggedRound:
    return LoggedRound(
        round_number=number,
        cut=1,
        lower_learning_rate=0.0,
        learning_rate=0.01,
        num_outer=1,
        num_inner=1,
        scalars=bytes(num_bytes),
    )


def log_of(*numbers: int, num_bytes: int = 16, magnitude: float = 1.0) -> Log:
    log = Log()
    for number in numbers:
        log = log.after(logged(number, num_bytes), magnitude)
    return log


def numbers(rounds: tuple[LoggedRound, ...]) -> list[int]:
    return [one.round_number for one in rounds]


def test_a_device_gets_the_rounds_since_the_one_that_it_has() -> None:
    log = log_of(1, 2, 4, 5)  # nothing came of round 3
    assert numbers(log.since(4)) == [4, 5]
    assert numbers(log.since(3)) == [4, 5]
    assert numbers(log.since(6)) == []
    assert numbers(log.since(None)) == [1, 2, 4, 5]


def test_a_device_that_was_away_for_longer_than_the_log_reaches_gets_nothing_of_it() -> None:
    log = log_of(*range(1, MAX_ROUNDS + 4))
    assert log.complete_from == 4
    assert numbers(log.since(3)) == []
    assert numbers(log.since(4)) == list(range(4, MAX_ROUNDS + 4))
    assert numbers(log.since(None)) == list(range(4, MAX_ROUNDS + 4))


def test_a_log_of_large_rounds_is_bounded_by_its_bytes() -> None:
    log = log_of(*range(1, 12), num_bytes=MAX_BYTES // 4)
    assert numbers(log.since(None)) == [9, 10, 11]
    assert len(msgspec.msgpack.encode(log.since(None))) <= MAX_BYTES
    assert log.complete_from == 9


def test_it_survives_in_memory_and_a_damaged_one_is_refused() -> None:
    log = log_of(2, 3)
    memory = log.in_memory()
    assert Log.of(memory) == log
    assert Log.of({}) is None
    with pytest.raises(AggregationError, match="put the round's adapter back"):
        Log.of({NAME: memory[NAME][:-3]})
    assert memory[NAME].dtype == np.uint8


def test_scalars_are_bounded_by_the_last_rounds_magnitudes() -> None:
    assert Log().largest_scalar is None
    assert log_of(1, magnitude=0.0).largest_scalar is None
    log = log_of(1, 2, magnitude=0.5)
    assert log.largest_scalar == 2.5
    for number in range(3, 11):
        log = log.after(logged(number), 2.0)
    assert log.largest_scalar == 10.0, "older rounds are forgotten"
    assert log_of(1, magnitude=1e30).largest_scalar == 1e6, "what fits an assignment"
