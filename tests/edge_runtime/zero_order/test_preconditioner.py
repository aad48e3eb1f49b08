"""HiSo's diagonal follows from the log alone, to the last bit, for whoever reads it from wherever."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.zero_order.noise import signs
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import LEAST, MOST, Preconditioner, apply_log
from edge_runtime.zero_order.replay import apply_round, perturb, scalars_of

Array = npt.NDArray[np.float32]
RANK, SEED = 2, 29
START, AGAIN = (
    PreconditionerStart(round_number=1, lower=1.0, upper=1.0),
    PreconditionerStart(round_number=4, lower=0.25, upper=0.5),
)


def logged(number: int, start: PreconditionerStart | None = START, shape: tuple[int, int] = (2, 3)) -> LoggedRound:
    scalars = np.random.default_rng(number).normal(size=(3, *shape)).astype("<f4")
    return LoggedRound(
        round_number=number,
        cut=1,
        lower_learning_rate=0.01,
        learning_rate=0.03,
        num_outer=shape[0],
        num_inner=shape[1],
        scalars=scalars.tobytes(),
        preconditioner=start,
    )


ROUNDS = [logged(1), logged(2), logged(3), logged(4, AGAIN), logged(6, AGAIN), logged(7, None)]


def theta(manifest: Manifest) -> Array:
    size = TunedParts.of(manifest, RANK, 0).num_elements
    return np.random.default_rng(3).normal(size=size).astype(np.float32)


def test_h_is_a_moving_mean_of_squared_estimates(manifest: Manifest) -> None:
    parts = TunedParts.of(manifest, RANK, 1)
    made = Preconditioner(parts, PreconditionerStart(round_number=1, lower=3.0, upper=2.0))
    made.add(SEED, logged(1))
    expected = np.ones(theta(manifest).size)
    for tensor in parts.upper:
        expected[tensor.place] = 2
    for tensor in parts.lower:
        expected[tensor.place] = 3
    for step, rho in enumerate(scalars_of(logged(1)).astype(np.float64), start=1):
        for tensor in parts.upper:
            noise = np.array([signs(SEED, 1, step, number, tensor.index, tensor.size) for number in range(6)])
            estimate = rho.reshape(-1) @ noise / np.sqrt(2.0) / 6
            expected[tensor.place] = 0.95 * expected[tensor.place] + 0.05 * estimate**2
        for tensor in parts.lower:
            noise = np.array([signs(SEED, 1, step, number, tensor.index, tensor.size) for number in range(2)])
            estimate = rho.mean(axis=1) @ noise / np.sqrt(3.0) / 2
            expected[tensor.place] = 0.95 * expected[tensor.place] + 0.05 * estimate**2
    np.testing.assert_allclose(made.diagonal, expected, rtol=1e-5)
    np.testing.assert_allclose(made.scale, expected**-0.5, rtol=1e-5)
    elements = np.concatenate([expected[tensor.place] for tensor in parts.upper])
    assert made.mean("upper") == pytest.approx(elements.mean())


def test_with_one_perturbation_h_is_one_number(manifest: Manifest) -> None:
    """A squared sign is 1: H then says how large scalars are, and nothing of single elements."""
    parts = TunedParts.of(manifest, RANK, 0)
    made = Preconditioner(parts, START)
    made.add(SEED, structs.replace(logged(1, shape=(1, 1)), cut=0))
    tuned = np.concatenate([made.diagonal[tensor.place] for tensor in parts.upper])
    assert np.unique(tuned).size == 1
    assert tuned[0] != 1


def test_noise_is_scaled(manifest: Manifest) -> None:
    parts, flat = TunedParts.of(manifest, RANK, 1), theta(manifest)
    made = Preconditioner.after(parts, SEED, ROUNDS[:3], START)
    out = flat.copy()
    perturb(flat, parts, "upper", -0.01, SEED, 4, 3, 2, out, made.scale)
    for tensor in parts.upper:
        noise = made.scale[tensor.place] * signs(SEED, 4, 3, 2, tensor.index, tensor.size)
        assert np.array_equal(out[tensor.place], flat[tensor.place] + noise * np.float32(-0.01))


def test_a_scaled_step_is_the_step_times_the_scale(manifest: Manifest) -> None:
    parts, before = TunedParts.of(manifest, RANK, 1), theta(manifest)
    scale = np.full(before.size, 4.0, np.float32)
    plain, scaled = before.copy(), before.copy()
    apply_round(plain, parts, SEED, logged(1, None))
    apply_round(scaled, parts, SEED, logged(1), scale)
    np.testing.assert_allclose(scaled - before, 4 * (plain - before), atol=1e-5)


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_device_that_was_away_ends_at_the_same_bits(manifest: Manifest, first: int) -> None:
    """It has theta of some round, and the log from where H began; a round that changed nothing is in no log."""
    whole, later = theta(manifest), theta(manifest)
    apply_log(whole, manifest, RANK, SEED, ROUNDS)
    apply_log(later, manifest, RANK, SEED, [one for one in ROUNDS if one.round_number < first])
    apply_log(later, manifest, RANK, SEED, ROUNDS[3:] if first > 3 else ROUNDS, first)
    assert later.tobytes() == whole.tobytes()


def test_h_after_a_log_is_that_of_its_own_start(manifest: Manifest) -> None:
    parts = TunedParts.of(manifest, RANK, 1)
    whole = Preconditioner.after(parts, SEED, ROUNDS, AGAIN)
    alone = Preconditioner.after(parts, SEED, ROUNDS[3:5], AGAIN)
    assert whole.diagonal.tobytes() == alone.diagonal.tobytes()
    fresh = Preconditioner.after(parts, SEED, ROUNDS, PreconditionerStart(round_number=9, lower=0.5, upper=0.7))
    assert fresh.mean("lower") == pytest.approx(0.5)
    assert fresh.mean("upper") == pytest.approx(0.7)
    with pytest.raises(TensorError, match="round 4 was at a cut of 1, not at 2"):
        Preconditioner.after(TunedParts.of(manifest, RANK, 2), SEED, ROUNDS, AGAIN)


@pytest.mark.parametrize(("scalar", "bound"), [(0.0, LEAST), (3e38, MOST)])
def test_h_stays_within_bounds(manifest: Manifest, scalar: float, bound: np.float32) -> None:
    parts = TunedParts.of(manifest, RANK, 0)
    made = Preconditioner(parts, START)
    changes: dict[str, Any] = {"cut": 0, "scalars": np.full(500, scalar, "<f4").tobytes()}
    made.add(SEED, structs.replace(logged(1, shape=(1, 1)), **changes))
    for tensor in parts.upper:
        assert (made.diagonal[tensor.place] == bound).all()
    assert np.isfinite(made.scale).all()


def test_a_scale_belongs_to_rounds_with_a_preconditioner(manifest: Manifest) -> None:
    parts, scale = TunedParts.of(manifest, RANK, 1), np.ones(theta(manifest).size, np.float32)
    with pytest.raises(TensorError, match="round 1, none is given"):
        apply_round(theta(manifest), parts, SEED, logged(1))
    with pytest.raises(TensorError, match="round 1, one is given"):
        apply_round(theta(manifest), parts, SEED, logged(1, None), scale)
