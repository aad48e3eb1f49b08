"""Figures of a run, against runs whose figures can be read off."""

from __future__ import annotations

import math

import pytest

from broker_server.experiments.compare import measures
from tests.broker_server.experiments.compare.samples import ROUND_BYTES, device, trace


def test_the_target_is_reached_at_the_end_of_the_first_round_at_or_above_it() -> None:
    point = measures.first_reach(trace([0.2, 0.5, 0.8, 0.7, 0.9]), 0.8)

    assert point is not None
    assert (point.round_number, point.time_s) == (2, 20.0)
    assert point.num_bytes == 2 * 2 * (2 * ROUND_BYTES)  # the artifact, in the first round, does not count


def test_a_perplexity_has_to_fall_to_its_target() -> None:
    point = measures.first_reach(trace([600.0, 200.0, 100.0, 90.0], is_causal=True), 100.0)

    assert point is not None
    assert point.round_number == 2


def test_a_target_that_is_never_reached_has_no_cost() -> None:
    assert measures.first_reach(trace([0.2, 0.79]), 0.8) is None


def test_the_sub_model_has_its_own_first_round() -> None:
    run = trace([0.2, 0.8, 0.9], sparse=[0.2, 0.4, 0.85])

    point = measures.first_reach(run, 0.8, sparse=True)

    assert point is not None
    assert point.round_number == 2


def test_without_an_emulated_fleet_time_is_the_wall_time_of_the_rounds() -> None:
    run = trace([0.2, 0.5, 0.8], is_emulated=False)

    assert run.clock == "wall"
    assert [point.time_s for point in run.points] == [0.0, 3.0, 6.0]


@pytest.mark.parametrize(("seconds", "quality"), [(9.9, 0.2), (10.0, 0.5), (25.0, 0.8), (1e9, 0.7)])
def test_quality_within_a_budget_is_that_of_the_last_round_that_ended_in_it(seconds: float, quality: float) -> None:
    assert measures.quality_within(trace([0.2, 0.5, 0.8, 0.7]), seconds=seconds) == quality


def test_quality_within_bytes() -> None:
    run = trace([0.2, 0.5, 0.8])

    assert measures.quality_within(run, num_bytes=run.points[1].num_bytes) == 0.5
    assert measures.quality_within(run, num_bytes=run.points[1].num_bytes - 1) == 0.2


def test_regret_adds_up_what_rounds_took_longer_than_the_oracle_s() -> None:
    run, oracle = trace([0.1] * 4, slow_s=10.0), trace([0.1] * 3, slow_s=7.0)

    assert measures.regret_curve(run, oracle) == [3.0, 6.0]
    assert measures.regret_curve(oracle, oracle) == [0.0, 0.0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_growth_of_regret_is_fitted(exponent: float) -> None:
    curve = [3.0 * n**exponent for n in range(1, 41)]

    assert measures.growth_exponent(curve) == pytest.approx(exponent)


@pytest.mark.parametrize("curve", [[1.0] * 5, [1.0] * 9 + [0.0], [-1.0] * 10])
def test_growth_is_not_fitted_where_it_means_nothing(curve: list[float]) -> None:
    assert measures.growth_exponent(curve) is None


def test_every_arm_that_was_given_counts_as_a_play_also_those_replaced() -> None:
    # round 1: the second arm fits (1 of 2 plays bad); round 2: nothing fits after three (3 of 3), and one is too late
    devices = {
        1: (device(1, 5.0, attempt=2), device(2, 4.0)),
        2: (
            device(1, None, outcome="failed", reason="arm_infeasible", attempt=3),
            device(2, 9.0, outcome="timed_out"),
        ),
        3: (device(1, None, outcome="failed", reason="diverged"), device(2, 4.0)),
    }
    run = trace([0.1] * 4, devices=devices)

    assert measures.infeasible_plays_ratio(run) == pytest.approx((1 + 3 + 1) / (2 + 1 + 3 + 1 + 1 + 1))
    assert measures.infeasible_plays_ratio(run, after_round=2) == 0.0
    assert measures.infeasible_plays_ratio(run, after_round=3) is None


def test_idle_is_the_share_of_time_spent_waiting_for_the_slowest() -> None:
    assert measures.idle_ratio(trace([0.1, 0.2], slow_s=10.0, fast_s=4.0)) == pytest.approx(6.0 / 20.0)
    assert measures.idle_ratio(trace([0.1, 0.2], slow_s=5.0, fast_s=5.0)) == 0.0


def test_a_device_that_missed_the_deadline_holds_a_round_up_until_then_only() -> None:
    devices = {1: (device(1, 100.0, outcome="timed_out"), device(2, 4.0))}

    assert measures.idle_ratio(trace([0.1, 0.2], slow_s=10.0, devices=devices)) == pytest.approx(6.0 / 20.0)


def test_a_run_without_devices_has_no_ratios() -> None:
    run = trace([0.1])

    assert measures.idle_ratio(run) is None
    assert measures.infeasible_plays_ratio(run) is None


def test_arms_are_averaged_by_class_and_round() -> None:
    devices = {1: (device(1, 5.0, arm=(0.25, 4)), device(2, 4.0, arm=(0.0, 8)))}

    arms = measures.arms_by_class([trace([0.1, 0.2], devices=devices), trace([0.1, 0.2])])

    assert arms == {
        "fast": {1: {"pruning_ratio": 0.25, "rank": 8.0}},
        "slow": {1: {"pruning_ratio": 0.375, "rank": 6.0}},
    }


def test_the_median_of_mostly_never_is_nothing() -> None:
    assert measures.median_or_none([1.0, 2.0, math.inf]) == 2.0
    assert measures.median_or_none([1.0, math.inf, math.inf]) is None
    assert measures.median_or_none([]) is None
