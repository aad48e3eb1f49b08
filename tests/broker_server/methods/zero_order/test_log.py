"""The log: bounded, complete from a round on that it says, and damaged ones refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from broker_server.errors import AggregationError
from broker_server.methods.zero_order.log import MAX_BYTES, MAX_ROUNDS, NAME, Log
from edge_runtime.wire.logged_rounds import LoggedRound


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


def test_a_log_that_is_cut_off_keeps_what_bounds_scalars_and_no_round_to_do_again() -> None:
    log = log_of(*range(1, MAX_ROUNDS + 1)).cut_off(MAX_ROUNDS)
    assert numbers(log.since(None)) == numbers(log.since(MAX_ROUNDS)) == []
    assert log.largest_scalar == log_of(1).largest_scalar
    log = log.after(logged(MAX_ROUNDS + 1), 1.0)
    assert log.complete_from == MAX_ROUNDS + 1, "an old round that leaves it does not make it reach further back"
    assert numbers(log.since(None)) == numbers(log.since(MAX_ROUNDS + 1)) == [MAX_ROUNDS + 1]
    assert numbers(log.since(MAX_ROUNDS)) == []


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


def linear(number: int, lower: float, upper: float, **changes: object) -> LoggedRound:
    """Scalars of a linear loss whose gradient has one element in either part."""
    rng = np.random.default_rng(number)
    outer, inner = rng.choice([-1.0, 1.0], (40, 2, 1)), rng.choice([-1.0, 1.0], (40, 2, 3))
    scalars = (lower * outer + upper * inner).astype("<f4").tobytes()
    made = msgspec.structs.replace(logged(number), num_outer=2, num_inner=3, lower_learning_rate=0.1, scalars=scalars)
    return msgspec.structs.replace(made, **changes)


def test_the_lower_parts_share_of_the_gradient_is_told_from_the_last_rounds() -> None:
    log = Log()
    for number in range(1, 20):
        log = log.after(linear(number, 1.0, 2.0) if number > 9 else linear(number, 5.0, 1.0), 1.0)
    share, num_draws = share_of(log)
    assert share == pytest.approx(1 / 5, abs=0.02)
    assert num_draws == 8 * 80
    share, num_draws = share_of(log.after(linear(20, 0.0, 1.0, cut=0), 1.0))
    assert share == pytest.approx(0, abs=0.05)
    assert num_draws == 80
    assert [found.last.round_number for found in log.lower_shares()] == [19]
    assert [found.last.cut for found in log.after(linear(20, 0.0, 1.0, cut=0), 1.0).lower_shares()] == [1, 0]


def share_of(log: Log) -> tuple[float, int]:
    assert log.lower_share is not None
    return log.lower_share.share, log.lower_share.num_draws


def test_where_rounds_do_not_tell_parts_apart_no_share_is_told() -> None:
    assert Log().lower_share is None
    assert log_of(1, 2).lower_share is None
    assert Log().after(linear(1, 1.0, 2.0, lower_learning_rate=0.0), 1.0).lower_share is None
    assert Log().after(linear(1, 1.0, 2.0, is_normalised=True), 1.0).lower_share is None
    assert Log().after(linear(1, 0.0, 0.0), 1.0).lower_share is None
