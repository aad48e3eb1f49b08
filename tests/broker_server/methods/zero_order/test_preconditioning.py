"""HiSo's diagonal on the server: the same for all devices of a round, begun anew before the log loses its rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.zero_order.log import MAX_BYTES, Log
from broker_server.methods.zero_order.method import ZeroOrder
from broker_server.methods.zero_order.preconditioning import MAX_ROUNDS, start_of
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner, apply_log
from tests.broker_server.methods.zero_order.samples import MANIFEST, RANK, SEED, method, scripted, start, steps

RNG = np.random.default_rng(0)
PARTS = TunedParts.of(MANIFEST, RANK, 1)
FIRST = PreconditionerStart(round_number=1, lower=1.0, upper=1.0)


def run(folder: Path, made: ZeroOrder, rounds: range, model: Aggregated) -> Aggregated:
    for number in rounds:
        replies = [scripted(folder, made, steps(made, model, number, d), d, number) for d in ("a", "b")]
        model = made.combine(number, model, {}, replies, RNG).model
    return model


def flat_of(model: Aggregated) -> bytes:
    return AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(model.adapter).tobytes()


def test_without_the_option_nothing_is_scaled() -> None:
    made = method()
    assert steps(made, start(made)).preconditioner is None


def test_a_device_that_begins_later_ends_at_the_servers_bits(tmp_path: Path) -> None:
    """Over a restart of the server, and of H."""
    made, last = method(precondition=True), MAX_ROUNDS + 3
    models = [start(made)]
    for number in range(1, last + 1):
        made = method(precondition=True) if number == 5 else made
        models.append(run(tmp_path, made, range(number, number + 1), models[-1]))
    log = Log.of(models[-1].memory)
    assert log is not None
    rounds = [entry.logged for entry in log.entries]
    plain = [one for one in rounds if one.preconditioner is None]
    assert not plain
    for first in (1, 7, MAX_ROUNDS + 2):
        flat = AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(models[first - 1].adapter)
        apply_log(flat, MANIFEST, RANK, SEED, rounds, first)
        assert flat.tobytes() == flat_of(models[-1])


def test_a_device_gets_all_rounds_since_h_began_though_it_has_their_model(tmp_path: Path) -> None:
    made = method(precondition=True)
    model = run(tmp_path, made, range(1, 6), start(made))
    work = steps(made, model, 6, "a")
    assert work.preconditioner == FIRST
    assert [one.round_number for one in work.log] == [1, 2, 3, 4, 5]


def test_h_begins_anew_at_the_mean_that_it_had(tmp_path: Path) -> None:
    made = method(precondition=True)
    model = run(tmp_path, made, range(1, MAX_ROUNDS + 1), start(made))
    work = steps(made, model, MAX_ROUNDS + 1, "a")
    log = Log.of(model.memory)
    assert log is not None
    reached = Preconditioner.after(PARTS, SEED, (entry.logged for entry in log.entries), FIRST)
    assert work.preconditioner == PreconditionerStart(
        round_number=MAX_ROUNDS + 1, lower=reached.mean("lower"), upper=reached.mean("upper")
    )
    assert work.preconditioner.lower != work.preconditioner.upper
    model = run(tmp_path, made, range(MAX_ROUNDS + 1, MAX_ROUNDS + 3), model)
    later = steps(made, model, MAX_ROUNDS + 3, "a")
    assert later.preconditioner == work.preconditioner
    assert [one.round_number for one in later.log] == [MAX_ROUNDS + 1, MAX_ROUNDS + 2]


def test_a_device_that_was_away_since_before_h_began_anew_can_do_its_rounds_again(tmp_path: Path) -> None:
    """It needs H of the rounds that it missed: those before them, since that H began."""
    made, model, last = method(precondition=True), None, MAX_ROUNDS + 4
    for number in range(1, last):
        model = start(made) if model is None else model
        if number == 10:
            at_10 = model
        members = ("a", "b") if number <= 10 else ("b",)
        replies = [scripted(tmp_path, made, steps(made, model, number, d), d, number) for d in members]
        model = made.combine(number, model, {}, replies, RNG).model
    assert model is not None
    log = steps(made, model, last, "a").log
    assert [one.round_number for one in log] == list(range(1, last))
    assert [one.round_number for one in steps(made, model, last, "b").log] == list(range(MAX_ROUNDS + 1, last))
    flat = AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(at_10.adapter)
    apply_log(flat, MANIFEST, RANK, SEED, log, 10)
    assert flat.tobytes() == flat_of(model)


def test_rounds_whose_h_is_gone_are_not_sent_but_those_that_the_next_round_needs_are() -> None:
    later = PreconditionerStart(round_number=6, lower=1.0, upper=1.0)
    log = Log(complete_from=3)
    for number in range(3, 9):
        log = log.after(logged(number, FIRST if number < 6 else later), 1.0)
    assert [one.round_number for one in log.since(4, later)] == [6, 7, 8]
    assert [one.round_number for one in log.since(7, later)] == [6, 7, 8]
    assert [one.round_number for one in log.since(None, later)] == [6, 7, 8]
    assert log.since(4) == ()


def logged(number: int, start_at: PreconditionerStart, *, cut: int = 1, num_steps: int = 2) -> LoggedRound:
    return LoggedRound(
        round_number=number,
        cut=cut,
        lower_learning_rate=0.1,
        learning_rate=0.1,
        num_outer=1,
        num_inner=2,
        scalars=np.full((num_steps, 1, 2), 0.5, "<f4").tobytes(),
        preconditioner=start_at,
    )


@pytest.mark.parametrize("cut", [0, 1])
def test_h_begins_at_one_where_another_cut_was_played_or_rounds_are_gone(cut: int) -> None:
    log = Log().after(logged(1, FIRST, cut=cut), 1.0)
    expected = FIRST if cut == 1 else PreconditionerStart(round_number=2, lower=1.0, upper=1.0)
    assert start_of(log, PARTS, SEED, 2) == expected
    gone = Log(complete_from=2, entries=log.entries)
    assert start_of(gone, PARTS, SEED, 2) == PreconditionerStart(round_number=2, lower=1.0, upper=1.0)


def test_h_begins_anew_before_large_rounds_leave_the_log() -> None:
    log = Log().after(logged(1, FIRST, num_steps=MAX_BYTES // 32), 1.0)
    assert start_of(log, PARTS, SEED, 2) == FIRST
    log = log.after(logged(2, FIRST, num_steps=MAX_BYTES // 32), 1.0)
    anew = start_of(log, PARTS, SEED, 3)
    assert anew.round_number == 3
    assert anew.upper != 1
