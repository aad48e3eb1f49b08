"""The parts of ``fedspine``: best profile, time model, partition, limits; the core of UCB against references."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.methods.scheduler.box import ArmBox
from broker_server.methods.scheduler.limits import Limits, scouts
from broker_server.methods.scheduler.partition import SMALLEST_SIDE, Partition
from broker_server.methods.scheduler.profile import frontier, profile
from broker_server.methods.scheduler.time_model import TimeModel
from broker_server.methods.scheduler.ucb import DiscountedCounts, bonus
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm

BOX = ArmBox.of(LORA_AXES.parse("0.0:2,0.875:16"), LORA_AXES)
POINTS = BOX.lattice()


# ---- profile ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), num_devices=st.integers(1, 3), num_points=st.integers(1, 5))
def test_profile_is_the_best_of_all_profiles(seed: int, num_devices: int, num_points: int) -> None:
    rng = np.random.default_rng(seed)
    times_s = rng.uniform(0.5, 5.0, (num_devices, num_points))
    times_s[rng.random(times_s.shape) < 0.2] = np.inf
    times_s[:, 0] = np.where(np.isfinite(times_s).any(axis=1), times_s[:, 0], 1.0)
    gains = rng.uniform(0.0, 1.0, num_points)

    def speed(chosen: tuple[int, ...]) -> float:
        longest = max(times_s[i, k] for i, k in enumerate(chosen))
        return float(np.mean([gains[k] for k in chosen]) / longest) if math.isfinite(longest) else 0.0

    best = max(speed(chosen) for chosen in itertools.product(range(num_points), repeat=num_devices))
    speeds = frontier(times_s, gains)
    chosen = tuple(int(k) for k in profile(times_s, gains, speeds.best()))
    assert speed(chosen) == pytest.approx(best)
    assert speeds.speed.max() == pytest.approx(best)
    assert speeds.best(0.05) <= speeds.best()


def test_device_that_cannot_finish_in_time_takes_its_fastest() -> None:
    assert profile(np.array([[3.0, 2.0, np.inf]]), np.array([1.0, 0.1, 2.0]), 1.0).tolist() == [1]


# ---- time ------------------------------------------------------------------------------------------------------------


def true_seconds(arm: Arm, factor: float, link_s: float) -> float:
    work = 0.06 + 0.94 * (1 - arm.pruning_ratio) * (1 + 0.004 * arm.rank)
    return factor * work + link_s * arm.rank * (1 - 0.8 * arm.pruning_ratio)


def trained(model: TimeModel, devices: dict[str, tuple[float, float]], num_rounds: int, noise: float) -> TimeModel:
    rng = np.random.default_rng(3)
    for _ in range(num_rounds):
        for device_id, truth in devices.items():
            arm = POINTS[int(rng.integers(len(POINTS)))]
            model.observe(device_id, arm, true_seconds(arm, *truth) * math.exp(noise * rng.standard_normal()))
        model.fit()
    return model


def test_times_of_every_arm_are_learnt_within_five_percent() -> None:
    devices = {"slow": (8.0, 0.2), "slow-link": (1.0, 0.1), "fast": (1.0, 0.01)}
    model = trained(TimeModel(BOX), devices, 30, 0.03)
    predicted = model.predict(list(devices), model.features(POINTS))
    true = np.array([[true_seconds(arm, *truth) for arm in POINTS] for truth in devices.values()])
    assert np.median(np.abs(predicted / true - 1)) < 0.02
    assert np.quantile(np.abs(predicted / true - 1), 0.95) < 0.1


def test_one_observation_after_a_change_tells_the_new_speed() -> None:
    model = trained(TimeModel(BOX), {"a": (2.0, 0.0), "b": (2.0, 0.0), "c": (8.0, 0.0)}, 15, 0.03)
    arm = Arm(pruning_ratio=0.5, rank=8)
    model.observe("a", arm, 3 * true_seconds(arm, 2.0, 0.0))
    model.fit()
    points = model.features(POINTS)
    assert model.predict(["a"], points) == pytest.approx(3 * model.predict(["b"], points), rel=0.12)


def test_a_time_that_is_too_short_counts_from_the_second_on() -> None:
    model = trained(TimeModel(BOX), {"a": (2.0, 0.0), "b": (2.0, 0.0), "c": (8.0, 0.0)}, 15, 0.03)
    arm, points = Arm(pruning_ratio=0.5, rank=8), model.features(POINTS)
    for times_of_b in (1.0, 1 / 3):
        model.observe("a", arm, true_seconds(arm, 2.0, 0.0) / 3)
        model.fit()
        assert model.predict(["a"], points) == pytest.approx(times_of_b * model.predict(["b"], points), rel=0.12)


def test_unknown_device_is_taken_for_the_slowest() -> None:
    model = trained(TimeModel(BOX), {"a": (1.0, 0.0), "b": (8.0, 0.0)}, 3, 0.0)
    points = model.features(POINTS)
    assert np.array_equal(model.predict(["new"], points), model.predict(["b"], points))
    assert not model.knows("new")


def test_time_never_falls_with_what_is_kept() -> None:
    model = trained(TimeModel(BOX), {"a": (1.0, 0.05)}, 6, 0.2)
    times = model.predict(["a"], model.features(POINTS))[0].reshape(len(BOX.values("pruning_ratio")), -1)
    assert (np.diff(times, axis=0) <= 1e-12).all()
    assert (np.diff(times, axis=1) >= -1e-12).all()


# ---- partition -------------------------------------------------------------------------------------------------------


def test_partition_is_fine_where_it_is_played_and_covers_the_box_once() -> None:
    partition = Partition(BOX, POINTS)
    played = Arm(pruning_ratio=0.75, rank=4)
    for _ in range(40):
        partition.observe([(played, 0.3)])
    areas = [(leaf.high[0] - leaf.low[0]) * (leaf.high[1] - leaf.low[1]) for leaf in partition.leaves]
    assert sum(areas) == pytest.approx(1.0)
    for point in POINTS:
        assert sum(leaf.holds(BOX.place(point)) for leaf in partition.leaves) == 1
    home = next(leaf for leaf in partition.leaves if leaf.holds(BOX.place(played)))
    assert max(home.high[k] - home.low[k] for k in (0, 1)) < 2 * SMALLEST_SIDE
    assert all(leaf.high[k] - leaf.low[k] >= SMALLEST_SIDE - 1e-12 for leaf in partition.leaves for k in (0, 1))


def test_estimates_borrow_from_neighbours_and_keep_the_prior_far_away() -> None:
    fresh, _ = Partition(BOX, POINTS).estimate()
    partition = Partition(BOX, POINTS)
    for _ in range(20):
        partition.observe([(Arm(pruning_ratio=0.75, rank=7), 0.35)] * 3)
    mean, extra = partition.estimate()
    near, far = POINTS.index(Arm(pruning_ratio=0.765625, rank=7)), POINTS.index(Arm(pruning_ratio=0.0, rank=16))
    assert abs(mean[near] - 0.35) < 0.5 * abs(fresh[near] - 0.35)
    assert mean[far] == pytest.approx(fresh[far], abs=0.05)
    assert extra[near] < extra[far]
    grid = mean.reshape(len(BOX.values("pruning_ratio")), -1)
    assert (np.diff(grid, axis=0) <= 1e-12).all()
    assert (np.diff(grid, axis=1) >= -1e-12).all()


# ---- limits ----------------------------------------------------------------------------------------------------------


@given(cap=st.floats(0.1, 1.2), seed=st.integers(0, 1000))
def test_device_that_always_wants_the_largest_arm_fails_a_handful_of_times(cap: float, seed: int) -> None:
    """The truth weighs rank otherwise than the halving does; nothing is tried twice; it ends near the cap."""
    weight = np.random.default_rng(seed).uniform(0.0, 0.4)
    limits, failed = Limits(BOX, POINTS), {"a": list[Arm]()}

    def memory(arm: Arm) -> float:
        return float((1 - arm.pruning_ratio) * (1 + weight * arm.rank / 16))

    tried = []
    for _ in range(40):
        allowed = [arm for arm, ok in zip(POINTS, limits.allowed("a", failed, ["a"]), strict=True) if ok]
        arm = max(allowed, key=lambda arm: (1 - arm.pruning_ratio) * (1 + 0.05 * arm.rank / 16))
        if memory(arm) <= cap:
            limits.manage("a", arm)
        elif any(memory(point) <= cap for point in POINTS):
            assert not any(LORA_AXES.costs_at_least(arm, known) for known in failed["a"])
            tried.append(arm)
            failed["a"].append(arm)
        else:
            return
    assert len(tried) <= 8


def test_what_fails_on_one_is_not_tried_on_its_like() -> None:
    limits, large, small = Limits(BOX, POINTS), Arm(pruning_ratio=0.0, rank=16), Arm(pruning_ratio=0.5, rank=8)
    limits.manage("a", small)
    limits.manage("b", small)
    index = POINTS.index(large)
    assert limits.allowed("a", {}, ["a", "b"])[index]
    assert not limits.allowed("a", {}, ["a", "b"], is_scout=False)[index]
    assert not limits.allowed("a", {"b": [large]}, ["a", "b"])[index]
    assert limits.allowed("a", {"b": [large]}, ["a"])[index]


def test_a_quarter_of_a_group_goes_ahead() -> None:
    group = [f"d{k}" for k in range(10)]
    assert len(scouts(group, np.random.default_rng(0))) == 3
    assert scouts(["only"], np.random.default_rng(0)) == {"only"}


# ---- the core of UCB -------------------------------------------------------------------------------------------------


def plays(num_arms: int, length: int) -> list[tuple[int, float]]:
    rng = np.random.default_rng(7)
    dealt = [*range(num_arms), *rng.integers(num_arms, size=length).tolist()]
    return [(int(arm), float(rng.random())) for arm in dealt]


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_discounted_ucb_is_the_formula_of_garivier_and_moulines(discount: float) -> None:
    history, num_arms = plays(4, 30), 4
    counts = DiscountedCounts(num_arms, discount)
    for arm, reward in history:
        counts.add(arm, reward)
    upper = counts.upper(0.7)
    last = len(history) - 1
    weights = [discount ** (last - t) for t in range(len(history))]
    total = sum(weights)
    for arm in range(num_arms):
        mine = [(w, reward) for w, (played, reward) in zip(weights, history, strict=True) if played == arm]
        count = sum(w for w, _ in mine)
        mean = sum(w * reward for w, reward in mine) / count
        assert upper[arm] == pytest.approx(mean + 0.7 * math.sqrt(math.log(total) / count))


def test_ucb_is_that_of_mabwiser() -> None:
    """Needs the package, which brings pandas and scikit-learn along; the formula is held by the test above anyway."""
    mab = pytest.importorskip("mabwiser.mab")
    history = plays(5, 60)
    counts = DiscountedCounts(5, 1.0)
    for arm, reward in history:
        counts.add(arm, reward)
    reference = mab.MAB([0, 1, 2, 3, 4], mab.LearningPolicy.UCB1(alpha=1.25))
    reference.fit([arm for arm, _ in history], [reward for _, reward in history])
    expected = reference.predict_expectations()
    assert counts.upper(1.25 * math.sqrt(2)).tolist() == pytest.approx([expected[arm] for arm in range(5)])


def test_bonus_of_what_was_never_played_is_infinite() -> None:
    assert np.isinf(bonus(np.array([0.0, 2.0]), 2.0, 1.0)).tolist() == [True, False]


def test_counts_survive_a_split_and_a_restart() -> None:
    counts = DiscountedCounts(2, 0.9)
    for arm, reward in ((0, 0.2), (1, 0.8), (1, 0.4)):
        counts.add(arm, reward)
    mean, total = counts.means[1], counts.counts.sum()
    counts.split(1)
    assert counts.means.tolist() == pytest.approx([0.2, mean, mean])
    assert counts.counts.sum() == pytest.approx(total)
    restored = DiscountedCounts.from_json(json.loads(json.dumps(counts.to_json())), 0.9)
    assert restored.upper(1.0).tolist() == counts.upper(1.0).tolist()
    assert restored.variances.tolist() == counts.variances.tolist()
