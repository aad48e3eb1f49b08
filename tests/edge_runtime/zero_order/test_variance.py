"""Bias and variance of the two-block estimate, as derived, by Monte Carlo on a quadratic with the code devices run.

A central difference of a quadratic is its derivative exactly, so that what is left is the estimator's own noise. With
d1 and d2 elements, gradients g1 and g2, and k = E z^4 - 2, -1 of +-1 noise, 1 of a Gaussian (docs/zero-order.md)::

    E|e1 - g1|^2 = ((d1 + k) |g1|^2 + d1 |g2|^2 / P2) / P1
    E|e2 - g2|^2 = ((d2 + k) |g2|^2 + d2 |g1|^2) / (P1 P2)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.seed_pool import Noise
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.zero_order.estimator import central_differences
from edge_runtime.zero_order.noise import draw
from edge_runtime.zero_order.parts import TunedParts, TunedTensor
from edge_runtime.zero_order.replay import apply_step, perturb

Array = npt.NDArray[np.float32]
SEED, EPSILON, NUM_TRIALS = 5, 0.25, 600


class Quadratic:
    """Loss ``g . x + x . h x / 2`` with a diagonal h, about x = theta - start."""

    def __init__(self, start: Array) -> None:
        rng = np.random.default_rng(8)
        self.start = start.astype(np.float64)
        self.gradient, self.curvature = rng.normal(size=start.size), rng.uniform(0, 3, start.size)

    def loss(self, theta: Array) -> float:
        x = theta.astype(np.float64) - self.start
        return float(self.gradient @ x + self.curvature @ (x * x) / 2)


def estimate(theta: Array, parts: TunedParts, numbers: LoggedRound, step: int, quadratic: Quadratic) -> Array:
    """Return the amount that a step subtracts from theta."""
    plus, minus = theta.copy(), theta.copy()
    losses = np.empty((2, numbers.num_outer, numbers.num_inner))
    for p in range(numbers.num_outer):
        for out, sign in ((plus, 1), (minus, -1)):
            perturb(theta, parts, "lower", sign * EPSILON, SEED, 1, step, p, out, noise=numbers.noise)
        for j in range(numbers.num_inner):
            for side, out, sign in ((0, plus, 1), (1, minus, -1)):
                number = p * numbers.num_inner + j
                perturb(theta, parts, "upper", sign * EPSILON, SEED, 1, step, number, out, noise=numbers.noise)
                losses[side, p, j] = quadratic.loss(out)
    scalars, _ = central_differences(losses[0], losses[1], EPSILON)
    moved = theta.copy()
    apply_step(moved, parts, numbers, SEED, 1, step, scalars)
    return theta - moved


def of_part(flat: npt.NDArray[np.float64], tensors: tuple[TunedTensor, ...]) -> npt.NDArray[np.float64]:
    return np.concatenate([flat[..., tensor.place] for tensor in tensors], axis=-1)


@pytest.mark.parametrize(("noise", "more", "num_trials"), [("rademacher", -1, NUM_TRIALS), ("gaussian", 1, 1500)])
@pytest.mark.parametrize(
    ("num_outer", "num_inner", "lower_rate", "rate"), [(1, 1, 0.5, 0.5), (2, 3, 0.25, 1.0), (1, 4, 0.125, 2.0)]
)
def test_bias_and_variance_are_as_derived(
    manifest: Manifest,
    num_outer: int,
    num_inner: int,
    lower_rate: float,
    rate: float,
    noise: Noise,
    more: int,
    num_trials: int,
) -> None:
    parts = TunedParts.of(manifest, 1, 1)
    theta = np.zeros(parts.num_elements, np.float32)
    quadratic = Quadratic(theta)
    numbers = LoggedRound(
        round_number=1,
        cut=1,
        lower_learning_rate=lower_rate,
        learning_rate=rate,
        num_outer=num_outer,
        num_inner=num_inner,
        scalars=b"",
        noise=noise,
    )
    moves = np.array([estimate(theta, parts, numbers, step, quadratic) for step in range(1, num_trials + 1)])
    g1, g2 = of_part(quadratic.gradient, parts.lower), of_part(quadratic.gradient, parts.upper)
    e1, e2 = of_part(moves, parts.lower) / lower_rate, of_part(moves, parts.upper) / rate
    variance1 = ((g1.size + more) * (g1 @ g1) + g1.size * (g2 @ g2) / num_inner) / num_outer
    variance2 = ((g2.size + more) * (g2 @ g2) + g2.size * (g1 @ g1)) / (num_outer * num_inner)
    for estimates, gradient, variance in ((e1, g1, variance1), (e2, g2, variance2)):
        measured = np.square(estimates - gradient).sum(axis=1).mean()
        assert measured == pytest.approx(variance, rel=0.1)
        bias = np.square(estimates.mean(axis=0) - gradient).sum()
        assert bias == pytest.approx(variance / num_trials, rel=0.6)  # what an unbiased mean of so many has left


def test_topzo_leaves_the_lower_part_and_its_noise_out(manifest: Manifest) -> None:
    """Without a perturbation below the cut the lower gradient adds no variance to the upper estimate."""
    parts = TunedParts.of(manifest, 1, 1)
    theta = np.zeros(parts.num_elements, np.float32)
    quadratic = Quadratic(theta)
    g2 = of_part(quadratic.gradient, parts.upper)
    numbers = LoggedRound(
        round_number=1, cut=1, lower_learning_rate=0, learning_rate=1, num_outer=1, num_inner=4, scalars=b""
    )
    moves = []
    for step in range(1, NUM_TRIALS + 1):
        out, losses = theta.copy(), np.empty((2, 1, 4))
        for j in range(4):
            for side, sign in ((0, 1), (1, -1)):
                perturb(theta, parts, "upper", sign * EPSILON, SEED, 1, step, j, out)
                losses[side, 0, j] = quadratic.loss(out)
        scalars, _ = central_differences(losses[0], losses[1], EPSILON)
        moved = theta.copy()
        apply_step(moved, parts, numbers, SEED, 1, step, scalars)
        moves.append(theta - moved)
    e2 = of_part(np.array(moves), parts.upper)
    assert not of_part(np.array(moves), parts.lower).any()
    variance = (g2.size - 1) * (g2 @ g2) / 4
    assert np.square(e2 - g2).sum(axis=1).mean() == pytest.approx(variance, rel=0.1)


def test_laws_differ_where_one_element_has_all_of_the_gradient() -> None:
    """The variance of z^2 g: 0 of +-1, 2 g^2 of a Gaussian."""
    laws: tuple[Noise, ...] = ("rademacher", "gaussian")
    squares = {
        law: np.square([draw(law, SEED, 1, step, 0, 0, 1)[0] for step in range(1, 4001)], dtype=np.float64)
        for law in laws
    }
    assert np.square(squares["rademacher"] - 1).mean() == 0
    assert np.square(squares["gaussian"] - 1).mean() == pytest.approx(2, rel=0.1)
