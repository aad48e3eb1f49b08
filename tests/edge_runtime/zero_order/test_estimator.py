"""Scalars from losses: those that are not finite count as 0, large ones are cut, and shares of the parts are found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.errors import TensorError
from edge_runtime.zero_order.estimator import (
    central_differences,
    check_epsilon,
    gradient_energies,
    one_sided_differences,
)
from edge_runtime.zero_order.noise import signs


def losses(*values: float) -> npt.NDArray[np.float64]:
    return np.array([values], np.float64)


def test_scalars_are_differences_in_float64() -> None:
    """Losses that differ by less than a float32 of their size can hold."""
    scalars, num_not_finite = central_differences(losses(1 + 1e-9, 3.0), losses(1 - 1e-9, 2.0), 1e-2)
    assert scalars.dtype == np.float32
    assert scalars.tolist() == [[pytest.approx(1e-7), pytest.approx(50.0)]]
    assert num_not_finite == 0


def test_what_is_not_finite_counts_as_nothing_and_is_counted() -> None:
    plus, minus = losses(np.nan, np.inf, np.inf, 1e300, 2.0), losses(1.0, 1.0, np.inf, 0.0, 1.0)
    scalars, num_not_finite = central_differences(plus, minus, 0.5, largest=0.25)
    assert scalars.tolist() == [[0, 0, 0, 0, 0.25]]
    assert num_not_finite == 4


def test_large_scalars_are_cut_on_either_side() -> None:
    scalars, _ = central_differences(losses(3.0, 0.0, 0.1), losses(0.0, 3.0, 0.0), 0.5, largest=1.0)
    assert scalars.tolist() == [[1, -1, pytest.approx(0.1)]]


def test_one_sided_scalars_are_from_the_loss_where_nothing_is_perturbed() -> None:
    scalars, num_not_finite = one_sided_differences(losses(1.5, 0.5, np.nan, 9.0), 1.0, 0.25, largest=4.0)
    assert scalars.dtype == np.float32
    assert scalars.tolist() == [[2, -2, 0, 4]]
    assert num_not_finite == 1
    _, num_not_finite = one_sided_differences(losses(1.5, np.inf), np.inf, 0.25)
    assert num_not_finite == 2


def test_shares_of_the_parts_are_found_from_scalars() -> None:
    """A linear loss: over many steps the estimates are the gradient's own squared norms within 5 %."""
    rng = np.random.default_rng(0)
    lower, upper = rng.normal(size=40), 2 * rng.normal(size=60)
    num_steps, num_outer, num_inner = 3000, 2, 4
    scalars = np.empty((num_steps, num_outer, num_inner), np.float32)
    for step in range(num_steps):
        for p in range(num_outer):
            along = signs(1, 1, step, p, 0, 40) @ lower
            for j in range(num_inner):
                scalars[step, p, j] = along + signs(1, 1, step, p * num_inner + j, 1, 60) @ upper
    found = gradient_energies(scalars)
    assert found == pytest.approx((lower @ lower, upper @ upper), rel=0.05)


def test_one_inner_perturbation_says_nothing_of_the_parts() -> None:
    with pytest.raises(TensorError, match="need 2 inner perturbations or more, got 1"):
        gradient_energies(np.zeros((3, 4, 1), np.float32))


def test_an_epsilon_that_float32_cannot_resolve_is_refused() -> None:
    values = np.array([0.5, -3.0], np.float32)
    check_epsilon(values, 1e-5)
    check_epsilon(np.zeros(0, np.float32), 1e-5)
    for epsilon in (1e-7, float("nan")):
        with pytest.raises(TensorError, match="is lost in float32 beside values of 3: choose 2e-06 or more"):
            check_epsilon(values, epsilon)
