"""Zero-order tuning on the server: what is asked, what is refused, and that its steps are those of the devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.method import Reply
from broker_server.methods.zero_order.log import Log
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import encode_statistics, sum_features
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.work import ProbeWork, ZeroOrderWork
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.replay import apply_round, apply_step
from tests.broker_server import tiny
from tests.broker_server.methods.replies import reply
from tests.broker_server.methods.zero_order.samples import (
    ARM,
    MANIFEST,
    RANK,
    SEED,
    STEPS,
    asked,
    method,
    scalars,
    scripted,
    start,
    steps,
    sums,
)

RNG = np.random.default_rng(0)


def test_what_is_asked() -> None:
    made = method(epsilon=0.02)
    work = steps(made, start(made), 3)
    assert (work.arm, work.seed, work.cut, work.num_local_steps) == (ARM, SEED, 1, STEPS)
    assert (work.num_outer, work.num_inner, work.epsilon) == (2, 2, 0.02)
    assert (work.learning_rate, work.lower_learning_rate) == (0.03, 0.015)
    assert (work.largest_scalar, work.log) == (None, ())


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({"lower_learning_rate": 0.0}, 0.0), ({"lower_learning_rate": 0.004}, 0.004), ({"cut": 0}, 0.0)],
)
def test_a_lower_part_has_a_rate_of_its_own_where_anything_is_tuned_there(
    settings: dict[str, float], rate: float
) -> None:
    made = method(**settings)
    assert steps(made, start(made)).lower_learning_rate == rate


@pytest.mark.parametrize(("normalise", "noise"), [(False, "rademacher"), (True, "rademacher"), (False, "gaussian")])
def test_a_round_does_the_steps_of_the_averages(tmp_path: Path, noise: str, *, normalise: bool) -> None:
    made = method(normalise=normalise, noise=noise)
    before = start(made)
    work = steps(made, before)
    replies = [scripted(tmp_path, made, work, f"d{n}", n, num_examples=n) for n in (1, 2, 5)]
    combined = made.combine(1, before, {}, replies, RNG)

    weighted = np.sum([n * scalars(n).astype(np.float64) for n in (1, 2, 5)], axis=0) / 8
    flat = AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(before.adapter)
    parts = TunedParts.of(MANIFEST, RANK, 1)
    for step, rho in enumerate(weighted.astype(np.float32), start=1):
        apply_step(flat, parts, work, SEED, 1, step, rho.reshape(2, 2))
    after = AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(combined.model.adapter)
    assert after.tobytes() == flat.tobytes()
    moved = {name for name, value in before.adapter.items() if not np.array_equal(value, combined.model.adapter[name])}
    assert moved == {name for name in before.adapter if "lora_A" not in name}
    again = made.combine(1, before, {}, replies[::-1], RNG)
    assert all(np.array_equal(value, again.model.adapter[name]) for name, value in combined.model.adapter.items())
    log = Log.of(combined.model.memory)
    assert log is not None
    logged = log.entries[0].logged
    assert (logged.is_normalised, logged.noise, work.noise) == (normalise, noise, noise)


def test_a_device_that_was_there_gets_the_rounds_since_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    made, restarted = method(), method()
    model = start(made)
    for number in range(1, 7):
        if number == 3:
            at_3 = model
        members = ("a", "b") if number in {1, 3} else ("b",)
        replies = [scripted(tmp_path, made, steps(made, model, number, d), d, number) for d in members]
        model = made.combine(number, model, {}, replies, RNG).model
    log = steps(made, model, 7, "a").log
    assert [one.round_number for one in log] == [3, 4, 5, 6]
    assert [one.round_number for one in steps(made, model, 7, "b").log] == [6]
    assert [one.round_number for one in steps(restarted, model, 7, "b").log] == [1, 2, 3, 4, 5, 6]

    flat = AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(at_3.adapter)
    for one in log:
        apply_round(flat, TunedParts.of(MANIFEST, RANK, one.cut), SEED, one)
    assert flat.tobytes() == AdapterLayout.of(MANIFEST, Plan.full(MANIFEST), RANK).flatten(model.adapter).tobytes()


def test_devices_that_are_away_for_ever_are_forgotten(tmp_path: Path) -> None:
    made = method()
    model = start(made)
    for number in range(1, 70):
        device_id = f"d{number}"
        replies = [scripted(tmp_path, made, steps(made, model, number, device_id), device_id, 1)]
        model = made.combine(number, model, {}, replies, RNG).model
    log = Log.of(model.memory)
    assert log is not None
    assert log.complete_from == 6
    assert len(log.entries) == 64
    assert sorted(made._accepted.values()) == list(range(6, 70))


def test_scalars_are_bounded_by_what_devices_measured_and_not_by_its_average(tmp_path: Path) -> None:
    """Many devices whose scalars nearly cancel: the bound of the next round is that of single ones."""
    made = method()
    before = start(made)
    work = steps(made, before)
    replies = [scripted(tmp_path, made, work, f"d{n}", n) for n in range(100)]
    model = made.combine(1, before, {}, replies, RNG).model
    largest = steps(made, model, 2).largest_scalar
    assert largest == pytest.approx(5 * 0.6745, rel=0.1)


def test_the_first_round_is_cut_to_its_own_magnitudes(tmp_path: Path) -> None:
    made = method()
    before = start(made)
    work = steps(made, before)
    values = np.ones((STEPS, 4), np.float32)
    wild = values.copy()
    wild[1, 2] = 1e30
    replies = [
        reply(tmp_path, made, work, name, encode_reply(given, 0)) for name, given in (("a", values), ("b", wild))
    ]
    combined = made.combine(1, before, {}, replies, RNG).model
    log = Log.of(combined.memory)
    assert log is not None
    expected = np.ones((STEPS, 4), np.float32)
    expected[1, 2] = 3.0  # of 1 and 5
    assert log.entries[0].logged.scalars == expected.tobytes()


def test_a_scalar_beyond_the_bound_of_its_work_is_refused(tmp_path: Path) -> None:
    made = method()
    model = start(made)
    model = made.combine(1, model, {}, [scripted(tmp_path, made, steps(made, model), "a", 1)], RNG).model
    work = steps(made, model, 2)
    assert work.largest_scalar is not None
    at_bound = np.full((STEPS, 4), work.largest_scalar, np.float32)
    made.check(work, encode_reply(at_bound, 0), 10)
    with pytest.raises(TensorError, match="was to be cut to"):
        made.check(work, encode_reply(at_bound * np.float32(1.01), 0), 10)
    with pytest.raises(TensorError, match="expected"):
        made.check(work, encode_reply(at_bound[:, :3], 0), 10)


def test_what_was_not_finite_is_told_by_device(tmp_path: Path) -> None:
    made = method()
    before = start(made)
    work = steps(made, before)
    replies = [scripted(tmp_path, made, work, "a", 1), scripted(tmp_path, made, work, "b", 2, not_finite=3)]
    assert made.combine(1, before, {}, replies, RNG).not_finite == {"a": 0, "b": 3}


@pytest.mark.parametrize(("rule", "value"), [("mean", 34.0), ("median", 2.0), ("trimmed", 2.0)])
def test_the_rule_is_that_of_the_settings(tmp_path: Path, rule: str, value: float) -> None:
    made = method(combine=rule)
    before = start(made)
    work = msgspec.structs.replace(steps(made, before), largest_scalar=1000.0)
    replies = [
        reply(tmp_path, made, work, f"d{given}", encode_reply(np.full((STEPS, 4), given, np.float32), 0))
        for given in (1.0, 2.0, 99.0)
    ]
    log = Log.of(made.combine(1, before, {}, replies, RNG).model.memory)
    assert log is not None
    assert np.frombuffer(log.entries[0].logged.scalars, "<f4").tolist() == [value] * 12


def test_a_round_of_different_steps_counts_for_nothing(tmp_path: Path) -> None:
    made, other = method(), method(cut=0)
    before = start(made)
    replies = [
        scripted(tmp_path, made, steps(made, before), "a", 1),
        scripted(tmp_path, other, steps(other, before), "b", 2),
    ]
    with pytest.raises(AggregationError, match="different steps"):
        made.combine(1, before, {}, replies, RNG)


def test_steps_that_leave_every_bound_count_for_nothing(tmp_path: Path) -> None:
    made = method()
    before = start(made)
    work = msgspec.structs.replace(steps(made, before), largest_scalar=1e6)
    far = encode_reply(np.full((STEPS, 4), 1e6, np.float32), 0)
    with pytest.raises(AggregationError, match="too large"):
        made.combine(1, before, {}, [reply(tmp_path, made, work, "a", far)], RNG)


def test_updates_without_examples_are_no_round(tmp_path: Path) -> None:
    made = method()
    before = start(made)
    with pytest.raises(AggregationError, match="no examples together"):
        made.combine(1, before, {}, [scripted(tmp_path, made, steps(made, before), "a", 1, num_examples=0)], RNG)


def statistics(folder: Path, made: object, work: ProbeWork, device_id: str, seed: int) -> Reply:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(10, tiny.HIDDEN)).astype(np.float32)
    blob = encode_statistics(sum_features(features, (features[:, 0] > 0).astype(np.int64), 2))
    return reply(folder, made, work, device_id, blob)  # type: ignore[arg-type]


def test_the_head_is_the_probes_once_and_steps_begin_after_that(tmp_path: Path) -> None:
    made = method(head="probe")
    before = start(made)
    work = sums(made, before)
    assert set(made.start(before, work).adapter) == {"classifier.weight", "classifier.bias"}
    assert (made.is_averaged(work), dict(made.trained(work))) == (False, {})
    assert isinstance(asked(made, before, round_number=4), ProbeWork), "as long as no sums came"
    replies = [statistics(tmp_path, made, work, name, seed) for seed, name in enumerate("ab")]
    after = made.combine(4, before, {}, replies, RNG).model
    moved = {name for name, value in before.adapter.items() if not np.array_equal(value, after.adapter[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert np.abs(after.adapter["classifier.weight"]).max() < 10

    work_after = steps(made, after, 5, "a")
    assert work_after.log == ()
    last = made.combine(5, after, {}, [scripted(tmp_path, made, work_after, "a", 1)], RNG).model
    assert [one.round_number for one in steps(method(head="probe"), last, 6).log] == [5]


def test_what_devices_start_from_is_the_whole_adapter() -> None:
    made = method()
    before = start(made)
    payload = made.start(before, steps(made, before))
    assert payload.adapter.keys() == before.adapter.keys()
    assert made.is_start_exact


def test_a_perturbation_that_is_lost_beside_a_large_head_is_refused() -> None:
    made = method(epsilon=1e-6)
    before = start(made)
    steps(made, before)
    large = {**before.adapter, "classifier.weight": np.full((2, tiny.HIDDEN), 900.0, np.float32)}
    with pytest.raises(ConfigError, match=r"zo_epsilon is too small for classifier.weight: .*choose"):
        steps(made, dataclasses.replace(before, adapter=large))


def test_work_of_another_method_is_refused() -> None:
    made = method()
    before = start(made)
    work = sums(method(head="probe"), before)
    with pytest.raises(MessageError, match="start a new run"):
        made.check(work, b"", 1)


def test_a_logged_round_has_the_rates_of_its_round(tmp_path: Path) -> None:
    made = method()
    before = start(made)
    replies = [scripted(tmp_path, made, steps(made, before, 2), "a", 1)]
    log = Log.of(made.combine(2, before, {}, replies, RNG).model.memory)
    assert log is not None
    logged: LoggedRound = log.entries[0].logged
    assert (logged.round_number, logged.learning_rate, logged.lower_learning_rate) == (2, 0.02, 0.01)


@pytest.mark.parametrize(("precondition", "is_kept"), [(False, False), (True, True)])
def test_a_log_is_kept_with_the_work_only_where_its_steps_need_it(
    tmp_path: Path, *, precondition: bool, is_kept: bool
) -> None:
    made = method(precondition=precondition)
    model = start(made)
    model = made.combine(1, model, {}, [scripted(tmp_path, made, steps(made, model), "a", 1)], RNG).model
    work = steps(made, model, 2)
    assert work.log
    kept = made.kept(work)
    assert isinstance(kept, ZeroOrderWork)
    assert kept == (work if is_kept else msgspec.structs.replace(work, log=()))
