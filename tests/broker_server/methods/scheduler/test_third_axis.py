"""Schedulers and their parts with an axis that the project does not have: they read the declaration, and only that."""

from __future__ import annotations

import dataclasses
import json
import math

import msgspec
import numpy as np
import pytest

from broker_server.errors import ConfigError
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import SCHEDULERS, ArmBox, ArmOutcome, Scheduler, SchedulerContext, make_scheduler
from broker_server.methods.scheduler.limits import Limits
from broker_server.methods.scheduler.partition import Partition
from broker_server.methods.scheduler.reward import prior_gain
from broker_server.methods.scheduler.time_model import TimeModel
from edge_runtime.wire.arms import PRUNING_RATIO, Axes, Axis
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm
from tests.three_axes import AXES, BATCH_SIZE

ARMS = AXES.parse("0.0:8:batch_size=8,0.25:8:batch_size=4,0.5:4:batch_size=2,0.75:4:batch_size=1")
BOX = ArmBox.of(ARMS, AXES)
POINTS = BOX.lattice()
DEVICES = {"slow-0": 8.0, "slow-1": 8.0, "fast-0": 1.0, "fast-1": 1.0}
"""By name, how many times the seconds of the fastest."""
NUM_ROUNDS = 30


def seconds(device_id: str, arm: Arm) -> float:
    """Truth: fixed work, and work on what is kept that grows with the batch."""
    return DEVICES[device_id] * (0.1 + 0.9 * (1 - arm.pruning_ratio) * BATCH_SIZE.of(arm) / 8)


def fits(device_id: str, arm: Arm) -> bool:
    """Slow devices have no memory for batches of more than four."""
    return device_id.startswith("fast") or BATCH_SIZE.of(arm) <= 4


def context() -> SchedulerContext:
    return SchedulerContext(
        axes=AXES,
        num_rounds=NUM_ROUNDS,
        device_classes={device_id: device_id[:4] for device_id in DEVICES},
        class_capability={"slow": 1 / 8, "fast": 1.0},
        completion_s=lambda device_id, arm, _: seconds(device_id, arm),
        is_feasible=fits,
    )


def outcome(device_id: str, arm: Arm, round_number: int, noise: float) -> ArmOutcome:
    if not fits(device_id, arm):
        return ArmOutcome(
            round_number=round_number, device_id=device_id, arm=arm, sparsity=0.0, outcome=Outcome.FAILED,
            reason=FailureReason.ARM_INFEASIBLE,
        )  # fmt: skip
    return ArmOutcome(
        round_number=round_number,
        device_id=device_id,
        arm=arm,
        sparsity=arm.pruning_ratio,
        outcome=Outcome.ACCEPTED,
        completion_s=seconds(device_id, arm) * math.exp(0.02 * noise),
        adapter_delta=(1 - arm.pruning_ratio) * BATCH_SIZE.of(arm) ** 0.25,
    )


def play(scheduler: Scheduler, round_number: int) -> dict[str, Arm]:
    rng, noise = np.random.default_rng((1, round_number)), np.random.default_rng((2, round_number))
    chosen = scheduler.choose(round_number, list(DEVICES), rng)
    outcomes = [outcome(device_id, arm, round_number, noise.standard_normal()) for device_id, arm in chosen.items()]
    for one in outcomes:
        scheduler.observe(one)
    scheduler.observe_round(outcomes)
    return chosen


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_plays_within_the_box_and_goes_on_from_its_state(name: str) -> None:
    scheduler = make_scheduler(name, ARMS, context())
    failed: dict[str, list[Arm]] = {device_id: [] for device_id in DEVICES}
    for round_number in range(1, 9):
        kept = json.loads(json.dumps(scheduler.to_json()))
        again = make_scheduler(name, ARMS, context())
        again.load_json(kept)
        chosen = play(scheduler, round_number)
        assert play(again, round_number) == chosen
        for device_id, arm in chosen.items():
            AXES.check(arm)
            assert all(low <= x <= high for x, (_, low, high) in zip(AXES.row(arm), BOX.sides(), strict=True))
            assert not any(AXES.costs_at_least(arm, one) for one in failed[device_id])
            if not fits(device_id, arm):
                failed[device_id].append(arm)
    assert scheduler.to_json() == again.to_json()


def test_fedspine_finds_that_batch_size_costs_time_and_memory() -> None:
    scheduler = make_scheduler("fedspine", ARMS, context())
    rounds = [play(scheduler, round_number) for round_number in range(1, NUM_ROUNDS + 1)]
    late = rounds[NUM_ROUNDS // 2 :]
    assert all(fits(device_id, arm) for chosen in late for device_id, arm in chosen.items())
    work = {
        name: np.mean([(1 - chosen[name].pruning_ratio) * BATCH_SIZE.of(chosen[name]) for chosen in late])
        for name in DEVICES
    }
    assert max(work["slow-0"], work["slow-1"]) < 0.5 * min(work["fast-0"], work["fast-1"])
    assert len({BATCH_SIZE.of(arm) for chosen in rounds for arm in chosen.values()}) > 2


def test_the_lattice_has_the_values_of_each_axis() -> None:
    assert BOX.values("batch_size") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(POINTS) == 49 * len(BOX.values("rank")) * 8
    assert BOX.cheapest == AXES.parse("0.75:4:batch_size=1")[0]
    assert BOX.costliest == AXES.parse("0.0:8:batch_size=8")[0]
    assert BOX.place(BOX.cheapest) == (1.0, 0.0, 0.0)
    assert BOX.place(AXES.parse("0.0:64:batch_size=64")[0]) == (0.0, 1.0, 1.0)
    wide = ArmBox.of(AXES.parse("0.0:8:batch_size=1,0.0:8:batch_size=64"), AXES)
    assert wide.values("batch_size") == [1, 2, 3, 6, 11, 20, 35, 64]


def test_times_are_learnt_over_three_axes() -> None:
    model = TimeModel(BOX)
    rng = np.random.default_rng(4)
    for _ in range(60):
        for device_id in DEVICES:
            arm = POINTS[int(rng.integers(len(POINTS)))]
            model.observe(device_id, arm, seconds(device_id, arm) * math.exp(0.02 * rng.standard_normal()))
        model.fit()
    features = model.features(POINTS)
    assert features.shape == (len(POINTS), 8)
    predicted = model.predict(list(DEVICES), features)
    true = np.array([[seconds(device_id, arm) for arm in POINTS] for device_id in DEVICES])
    assert np.median(np.abs(predicted / true - 1)) < 0.03
    assert np.quantile(np.abs(predicted / true - 1), 0.95) < 0.12


def test_the_partition_is_cut_along_the_third_axis_and_stays_monotone() -> None:
    partition = Partition(BOX, POINTS)
    rng = np.random.default_rng(5)
    for _ in range(60):
        arm = POINTS[int(rng.integers(len(POINTS)))]
        partition.observe([(arm, 0.5 * (1 - arm.pruning_ratio) + 0.05 * BATCH_SIZE.of(arm))])
    assert len({leaf.low[2] for leaf in partition.leaves}) > 2
    for point in POINTS[::97]:
        assert sum(leaf.holds(BOX.place(point)) for leaf in partition.leaves) == 1
    mean, _ = partition.estimate()
    grid = mean.reshape(49, -1, 8)
    assert (np.diff(grid, axis=0) <= 1e-12).all()
    assert (np.diff(grid, axis=1) >= -1e-12).all()
    assert (np.diff(grid, axis=2) >= -1e-12).all()
    assert grid[0, 0, 7] > grid[0, 0, 0]


def test_what_failed_bars_what_is_costlier_on_every_axis_and_nothing_else() -> None:
    limits, failed = Limits(BOX, POINTS), AXES.parse("0.25:6:batch_size=4")[0]
    limits.manage("a", BOX.costliest)
    allowed = limits.allowed("a", {"a": [failed]})
    assert {bool(allowed[i]) for i, arm in enumerate(POINTS) if AXES.costs_at_least(arm, failed)} == {False}
    assert all(allowed[i] for i, arm in enumerate(POINTS) if not AXES.costs_at_least(arm, failed))


def test_a_dearer_value_is_believed_to_gain_more() -> None:
    gains = prior_gain(BOX, AXES.parse("0.0:8:batch_size=1,0.0:8:batch_size=4,0.0:8:batch_size=8"))
    assert gains.tolist() == sorted(set(gains.tolist()))
    assert gains[-1] == pytest.approx(1.0)


def test_a_float_of_which_more_costs_more() -> None:
    share = Axis(
        name="share", label="share", metavar="SHARE", words="{:.0%} of the examples", kind=float, least=0.125, most=1.0,
        example=0.5, per_unit=8,
    )  # fmt: skip
    axes = Axes((share, *AXES))
    wide = ArmBox.of(axes.parse("0.2:0.0:8,1.0:0.5:8"), axes)
    assert wide.values("share") == [0.2, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    assert wide.work(wide.rows([wide.cheapest])).tolist() == [[0.2, 0.5, 1.0, 1.0]]
    assert wide.place(axes.parse("0.6:0.25:8")[0]) == pytest.approx((0.5, 0.5, 0.0, 0.0))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_without_axes_every_scheduler_plays_the_one_arm_or_says_what_it_lacks(name: str) -> None:
    one = Axes().parse("")
    alone = dataclasses.replace(context(), axes=Axes(), is_feasible=lambda *_: True, completion_s=lambda *_: 1.0)
    if name in {"fedlps", "fedara"}:
        with pytest.raises(ConfigError, match=rf"scheduler '{name}' chooses by pruning ratio, which .*: take another$"):
            make_scheduler(name, one, alone)
        return
    scheduler = make_scheduler(name, one, alone)
    for round_number in range(1, 6):
        assert set(play(scheduler, round_number).values()) == set(one)
    again = make_scheduler(name, one, alone)
    again.load_json(json.loads(json.dumps(scheduler.to_json())))
    assert play(again, 6) == play(scheduler, 6)
    refusal = outcome("slow-0", one[0], 7, 0.0)
    scheduler.observe(msgspec.structs.replace(refusal, outcome=Outcome.FAILED, reason=FailureReason.ARM_INFEASIBLE))
    assert scheduler.choose_again(7, "slow-0", np.random.default_rng(0)) is None


def test_a_scheduler_that_chooses_by_an_axis_that_arms_lack_is_refused() -> None:
    ratios = Axes((PRUNING_RATIO,))
    assert make_scheduler("fedlps", ratios.parse("0.0,0.5"), SchedulerContext(axes=ratios)).name == "fedlps"
    with pytest.raises(ConfigError, match="chooses by rank"):
        make_scheduler("fedara", ratios.parse("0.0,0.5"), SchedulerContext(axes=ratios, num_rounds=3))
