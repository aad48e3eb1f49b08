"""Steps are the same bits whoever does them, and however a log is split; theta is perturbed from theta each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.zero_order.noise import signs
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.replay import apply_round, apply_step, perturb, scalars_of

Array = npt.NDArray[np.float32]
RANK, SEED = 2, 17


def logged(number: int, cut: int = 1, num_outer: int = 2, num_inner: int = 3, **changes: Any) -> LoggedRound:
    num_steps = 1 + number % 3
    scalars = np.random.default_rng(number).normal(size=(num_steps, num_outer, num_inner)).astype("<f4")
    made = LoggedRound(
        round_number=number,
        cut=cut,
        lower_learning_rate=0.01,
        learning_rate=0.03,
        num_outer=num_outer,
        num_inner=num_inner,
        scalars=scalars.tobytes(),
    )
    return structs.replace(made, **changes)


def theta(manifest: Manifest) -> Array:
    size = TunedParts.of(manifest, RANK, 0).num_elements
    return np.random.default_rng(3).normal(size=size).astype(np.float32)


def replay(flat: Array, manifest: Manifest, rounds: list[LoggedRound]) -> Array:
    for one in rounds:
        apply_round(flat, TunedParts.of(manifest, RANK, one.cut), SEED, one)
    return flat


def by_hand(flat: Array, parts: TunedParts, one: LoggedRound) -> Array:
    """The same round in loops over elements, from the formulas in replay.py's docstrings."""
    out = flat.copy()
    for step, rho in enumerate(scalars_of(one), start=1):
        for which in ("lower", "upper"):
            for tensor in parts.part("lower" if which == "lower" else "upper"):
                for element in range(tensor.size):
                    total = np.float32(0)
                    for p in range(one.num_outer):
                        mean = np.float32(0)
                        for j in range(one.num_inner):
                            mean = np.float32(mean + rho[p, j])
                            if which == "upper":
                                number = p * one.num_inner + j
                                sign = signs(SEED, one.round_number, step, number, tensor.index, tensor.size)[element]
                                total = np.float32(total + np.float32(rho[p, j] * sign))
                        if which == "lower":
                            sign = signs(SEED, one.round_number, step, p, tensor.index, tensor.size)[element]
                            total = np.float32(total + np.float32(np.float32(mean / np.float32(3)) * sign))
                    rate = one.learning_rate / 6 if which == "upper" else one.lower_learning_rate / 2
                    place = tensor.place.start + element
                    out[place] = np.float32(out[place] - np.float32(total * np.float32(rate)))
    return out


def test_a_round_is_what_the_formulas_say_to_the_last_bit(manifest: Manifest) -> None:
    parts, flat = TunedParts.of(manifest, RANK, 1), theta(manifest)
    expected = by_hand(flat, parts, logged(2))
    apply_round(flat, parts, SEED, logged(2))
    assert flat.tobytes() == expected.tobytes()
    assert not np.array_equal(flat, theta(manifest))


@settings(max_examples=25)
@given(st.sets(st.integers(0, 9)))
def test_replay_is_the_same_bits_however_it_is_split(manifest: Manifest, cuts: set[int]) -> None:
    """A device that is brought up to date in pieces ends where one ends that does all rounds at once."""
    rounds = [logged(number, cut=number % 3, num_inner=1 + number % 2) for number in range(1, 11)]
    whole = replay(theta(manifest), manifest, rounds)
    flat = theta(manifest)
    ends = [*sorted(cuts), len(rounds)]
    for begin, end in zip([0, *ends], ends, strict=False):
        flat = replay(flat.copy(), manifest, rounds[begin:end])
    assert flat.tobytes() == whole.tobytes()


def test_steps_one_by_one_are_the_round(manifest: Manifest) -> None:
    """The steps of a device in its assignment, and the log's record of them, change theta alike."""
    one, parts = logged(5), TunedParts.of(manifest, RANK, 1)
    alone, whole = theta(manifest), theta(manifest)
    for step, scalars in enumerate(scalars_of(one), start=1):
        apply_step(alone, parts, one, SEED, one.round_number, step, scalars)
    apply_round(whole, parts, SEED, one)
    assert alone.tobytes() == whole.tobytes()


def test_a_factors_never_change_and_the_lower_part_stays_at_a_rate_of_zero(manifest: Manifest) -> None:
    parts, before = TunedParts.of(manifest, RANK, 1), theta(manifest)
    flat = replay(theta(manifest), manifest, [logged(2), logged(3)])
    tuned = np.zeros(flat.size, bool)
    for tensor in (*parts.lower, *parts.upper):
        tuned[tensor.place] = True
    assert np.array_equal(flat != before, tuned)
    still = replay(theta(manifest), manifest, [logged(2, lower_learning_rate=0.0)])
    for tensor in parts.lower:
        assert np.array_equal(still[tensor.place], before[tensor.place])
    for tensor in parts.upper:
        assert (still[tensor.place] != before[tensor.place]).all()


def test_a_step_descends_along_the_noise(manifest: Manifest) -> None:
    """A positive scalar says that the loss grows along z: theta goes the other way."""
    parts, flat = TunedParts.of(manifest, RANK, 0), theta(manifest)
    one = logged(1, cut=0, num_outer=1, num_inner=1, scalars=np.array([2.0], "<f4").tobytes())
    apply_step(flat, parts, one, SEED, 1, 1, np.array([[2.0]], np.float32))
    for tensor in parts.upper:
        noise = signs(SEED, 1, 1, 0, tensor.index, tensor.size)
        assert np.array_equal(np.sign(theta(manifest)[tensor.place] - flat[tensor.place]), noise)


def test_a_normalised_step_is_over_the_deviation_of_its_scalars(manifest: Manifest) -> None:
    one, parts = logged(2), TunedParts.of(manifest, RANK, 1)
    scalars = scalars_of(one)[0]
    deviation = float(np.std(scalars.astype(np.float64)))
    rates = {"learning_rate": one.learning_rate / deviation, "lower_learning_rate": one.lower_learning_rate / deviation}
    flat, expected = theta(manifest), theta(manifest)
    apply_step(flat, parts, structs.replace(one, is_normalised=True), SEED, 2, 1, scalars)
    apply_step(expected, parts, structs.replace(one, **rates), SEED, 2, 1, scalars)
    np.testing.assert_allclose(flat, expected, rtol=1e-6)


@settings(max_examples=25)
@given(st.integers(-20, 20))
def test_a_normalised_round_does_not_depend_on_the_losses_scale(manifest: Manifest, exponent: int) -> None:
    """To the last bit, where the scale is a power of two: one learning rate serves models whose losses differ."""
    one = logged(5, is_normalised=True)
    scaled = structs.replace(one, scalars=(scalars_of(one) * np.float32(2.0**exponent)).astype("<f4").tobytes())
    flat = replay(theta(manifest), manifest, [one])
    assert flat.tobytes() == replay(theta(manifest), manifest, [scaled]).tobytes()
    assert flat.tobytes() != replay(theta(manifest), manifest, [structs.replace(one, is_normalised=False)]).tobytes()


def test_scalars_that_do_not_differ_move_nothing_where_they_are_normalised(manifest: Manifest) -> None:
    scalars = np.full((2, 2, 3), 0.7, "<f4").tobytes()
    flat = replay(theta(manifest), manifest, [logged(2, is_normalised=True, scalars=scalars)])
    assert flat.tobytes() == theta(manifest).tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_perturbing_writes_one_part_and_leaves_theta(manifest: Manifest, sign: int) -> None:
    parts, flat = TunedParts.of(manifest, RANK, 1), theta(manifest)
    out = np.full(flat.size, np.nan, np.float32)
    perturb(flat, parts, "upper", sign * 0.01, SEED, 4, 3, 2, out)
    assert flat.tobytes() == theta(manifest).tobytes()
    written = np.zeros(flat.size, bool)
    for tensor in parts.upper:
        written[tensor.place] = True
        noise = signs(SEED, 4, 3, 2, tensor.index, tensor.size)
        assert np.array_equal(out[tensor.place], flat[tensor.place] + np.float32(sign * 0.01) * noise)
    assert np.isnan(out[~written]).all()
    perturb(flat, parts, "lower", 0.0, SEED, 4, 3, 2, out)
    for tensor in parts.lower:
        assert np.array_equal(out[tensor.place], flat[tensor.place])


def test_a_round_at_another_cut_is_refused(manifest: Manifest) -> None:
    with pytest.raises(TensorError, match="round 2 was at a cut of 0, not at 1"):
        apply_round(theta(manifest), TunedParts.of(manifest, RANK, 1), SEED, logged(2, cut=0))


@pytest.mark.parametrize("scalars", [b"", bytes(23), bytes(28)])
def test_scalars_that_are_no_whole_steps_are_refused(scalars: bytes) -> None:
    with pytest.raises(TensorError, match="bytes of scalars, expected steps of 24 bytes"):
        scalars_of(logged(2, scalars=scalars))


def test_scalars_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TensorError, match="not finite"):
        scalars_of(logged(2, scalars=np.array([1, 1, np.nan, 1, 1, 1], "<f4").tobytes()))
