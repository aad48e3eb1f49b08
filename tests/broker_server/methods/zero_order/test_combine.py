"""Scalars of devices as one: by examples, or so that few cannot decide."""

from __future__ import annotations

import numpy as np
import pytest

from broker_server.methods.zero_order.combine import RULES, largest_scalar, typical_magnitude
from edge_runtime.bounds.limits import MAX_FACTOR


def combined(rule: str, values: list[float], weights: list[float] | None = None) -> float:
    given = np.array(values)[:, None]
    return float(RULES[rule](given, np.array(weights or [1.0] * len(values)))[0])


def test_the_mean_is_by_examples() -> None:
    assert combined("mean", [1.0, 4.0], [3, 1]) == 1.75


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_one_of_three_or_more_cannot_decide_whatever_it_says_and_weighs(rule: str) -> None:
    for num_devices in (3, 4, 10, 11):
        honest = [0.9, *[1.0] * (num_devices - 3), 1.1]
        assert 0.9 <= combined(rule, [*honest, 1e30], [*[1.0] * (num_devices - 1), 1e6]) <= 1.1
    assert combined("mean", [0.9, 1.1, 1e30]) > 1e29


@pytest.mark.parametrize(("num_devices", "num_left_out"), [(1, 0), (2, 0), (3, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_tenth_is_left_out_at_either_end(num_devices: int, num_left_out: int) -> None:
    values = [float(2**n) for n in range(num_devices)]
    kept = values[num_left_out : num_devices - num_left_out]
    assert combined("trimmed", values) == pytest.approx(sum(kept) / len(kept))


def test_the_typical_magnitude_is_that_of_single_devices_however_many_there_are() -> None:
    """Averages of many devices are smaller than what each of them measures."""
    values = np.random.default_rng(0).normal(size=(400, 10, 4))
    assert typical_magnitude(values) == pytest.approx(0.6745, rel=0.02)
    assert np.median(np.abs(values.mean(axis=0))) < 0.1


def test_the_bound_of_scalars_is_five_times_the_median_of_the_last_eight_rounds() -> None:
    assert largest_scalar([]) is None
    assert largest_scalar([0.0]) is None
    assert largest_scalar([100.0] * 9 + [1.0] * 5 + [7.0] * 3) == 5.0
    assert largest_scalar([1e30]) == MAX_FACTOR
