"""Schedulers: what they promise, what they remember, and that a restored one goes on as if nothing had happened."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import SCHEDULERS, ArmOutcome, Scheduler, SchedulerContext, make_scheduler
from broker_server.methods.scheduler.box import ArmBox
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm

ARMS = LORA_AXES.parse("0.0:8,0.25:8,0.5:4")
LARGE, MIDDLE, SMALL = ARMS
DEVICES = [f"board-{i}" for i in range(6)]
LISTED = ("ducb", "fixed", "random", "thompson", "uniform")
"""Schedulers that take arms from the list; the others' space is its box."""
CONTEXT = SchedulerContext(
    num_rounds=10,
    device_classes=dict.fromkeys([*DEVICES, "a"], "board"),
    class_capability={"board": 1.0},
    completion_s=lambda _, arm, __: 2.0 - arm.pruning_ratio,
)


def make(name: str) -> Scheduler:
    return make_scheduler(name, ARMS, CONTEXT)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def out_of_memory(device_id: str, arm: Arm) -> ArmOutcome:
    return ArmOutcome(
        round_number=1,
        device_id=device_id,
        arm=arm,
        sparsity=0.0,
        outcome=Outcome.FAILED,
        reason=FailureReason.ARM_INFEASIBLE,
    )


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_device_gets_an_arm_of_the_configuration(name: str) -> None:
    choices = make(name).choose(1, DEVICES, rng())
    assert sorted(choices) == DEVICES
    if name in LISTED:
        assert set(choices.values()) <= set(ARMS)
    for arm in choices.values():
        assert 0.0 <= arm.pruning_ratio <= 0.5
        assert 4 <= arm.rank <= 8


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@given(rounds=st.integers(0, 6), seed=st.integers(0, 1000))
def test_restored_scheduler_goes_on_the_same(name: str, rounds: int, seed: int) -> None:
    scheduler = make(name)
    for round_number in range(1, rounds + 1):
        scheduler.choose(round_number, DEVICES, rng(seed + round_number))
    scheduler.observe(out_of_memory("board-1", MIDDLE))
    restored = make(name)
    restored.load_json(json.loads(json.dumps(scheduler.to_json())))
    assert restored.choose(9, DEVICES, rng(9)) == scheduler.choose(9, DEVICES, rng(9))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@given(seed=st.integers(0, 1000))
def test_arm_that_was_too_large_is_not_played_again(name: str, seed: int) -> None:
    scheduler = make(name)
    scheduler.observe(out_of_memory("board-1", MIDDLE))
    for round_number in range(1, 8):
        chosen = scheduler.choose(round_number, DEVICES, rng(seed + round_number))["board-1"]
        assert not LORA_AXES.costs_at_least(chosen, MIDDLE)
        assert name not in LISTED or chosen == SMALL


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_other_devices_may_still_play_it(name: str) -> None:
    scheduler = make(name)
    scheduler.observe(out_of_memory("board-1", LARGE))
    assert scheduler.feasible("board-2") == [0, 1, 2]
    assert scheduler.feasible("board-1") == [1, 2]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_device_that_no_arm_fits_is_offered_the_cheapest(name: str) -> None:
    scheduler = make(name)
    scheduler.observe(out_of_memory("board-1", SMALL))
    scheduler.observe(out_of_memory("board-1", Arm(pruning_ratio=0.5, rank=4)))
    assert scheduler.feasible("board-1") == []
    assert scheduler.choose_again(1, "board-1", rng()) is None
    assert scheduler.choose(2, ["board-1"], rng()) == {"board-1": SMALL}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_an_arm_that_a_device_manages_after_all_is_feasible_again(name: str) -> None:
    scheduler = make(name)
    for arm in (SMALL, Arm(pruning_ratio=0.5, rank=4)):
        scheduler.observe(out_of_memory("board-1", arm))
        scheduler.observe(out_of_memory("board-2", arm))
    managed = ArmOutcome(round_number=2, device_id="board-1", arm=SMALL, sparsity=0.4, outcome=Outcome.ACCEPTED)
    scheduler.observe(managed)
    assert scheduler.feasible("board-1") == [0, 1, 2]
    assert scheduler.feasible("board-2") == []
    scheduler.observe(out_of_memory("board-1", LARGE))
    scheduler.observe(managed)
    assert scheduler.feasible("board-1") == [1, 2]  # a cheaper arm says nothing of a costlier one


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_other_failures_make_no_arm_infeasible(name: str) -> None:
    scheduler = make(name)
    outcome = ArmOutcome(
        round_number=1,
        device_id="board-1",
        arm=LARGE,
        sparsity=0.0,
        outcome=Outcome.FAILED,
        reason=FailureReason.DISK_FULL,
    )
    scheduler.observe(outcome)
    assert scheduler.feasible("board-1") == [0, 1, 2]


def test_fixed_deals_in_turn_and_keeps() -> None:
    scheduler = make_scheduler("fixed", ARMS)
    first = scheduler.choose(1, DEVICES, rng())
    assert [first[device_id] for device_id in DEVICES] == [*ARMS, *ARMS]
    assert scheduler.choose(2, DEVICES[::-1], rng(1)) == first


def test_random_plays_every_arm_and_only_by_the_generator() -> None:
    scheduler = make_scheduler("random", ARMS)
    played = collections.Counter(scheduler.choose(i, ["a"], rng(i))["a"] for i in range(300))
    assert set(played) == set(ARMS)
    assert min(played.values()) > 60
    assert scheduler.choose(1, DEVICES, rng(5)) == make_scheduler("random", ARMS).choose(1, DEVICES, rng(5))


@given(num_devices=st.integers(1, 8), num_rounds=st.integers(1, 9), seed=st.integers(0, 100))
def test_uniform_is_balanced_on_each_device_and_in_all(num_devices: int, num_rounds: int, seed: int) -> None:
    scheduler = make_scheduler("uniform", ARMS)
    played: dict[str, collections.Counter[Arm]] = collections.defaultdict(collections.Counter)
    for round_number in range(1, num_rounds + 1):
        for device_id, arm in scheduler.choose(round_number, DEVICES[:num_devices], rng(seed + round_number)).items():
            played[device_id][arm] += 1
    for counts in played.values():
        assert max(counts[arm] for arm in ARMS) - min(counts[arm] for arm in ARMS) <= 1
    if num_rounds == 1:
        total = collections.Counter(arm for counts in played.values() for arm in counts.elements())
        assert max(total[arm] for arm in ARMS) - min(total[arm] for arm in ARMS) <= 1


def test_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fixed, oracle, random"):
        make_scheduler("best", ARMS)


@pytest.mark.parametrize("name", ["by_class", "fedara", "oracle"])
def test_scheduler_that_must_be_told_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*needs"):
        make_scheduler(name, ARMS)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_missed_deadline_makes_an_arm_infeasible(name: str) -> None:
    scheduler = make(name)
    late = ArmOutcome(round_number=1, device_id="board-1", arm=MIDDLE, sparsity=0.2, outcome=Outcome.TIMED_OUT)
    scheduler.observe(late)
    assert scheduler.feasible("board-1") == [2]
    assert not scheduler.is_feasible("board-1", Arm(pruning_ratio=0.125, rank=8))
    assert scheduler.is_feasible("board-1", Arm(pruning_ratio=0.125, rank=7))


def test_box_holds_both_ends_and_multiples_of_a_64th() -> None:
    box = ArmBox.of(LORA_AXES.parse("0.1:2,0.7:64"), LORA_AXES)
    ratios, ranks = box.values("pruning_ratio"), box.values("rank")
    assert (ratios[0], ratios[-1], ranks[0], ranks[-1]) == (0.1, 0.7, 2, 64)
    assert all(ratio * 64 == int(ratio * 64) for ratio in ratios[1:-1])
    assert len(ranks) == 8
    assert len(box.lattice()) == len(ratios) * len(ranks)
    assert ArmBox.of(LORA_AXES.parse("0.5:4"), LORA_AXES).lattice() == LORA_AXES.parse("0.5:4")


def test_by_class_deals_arms_by_speed_and_the_context_may_name_them() -> None:
    classes = {"a": "slow", "b": "middle", "c": "fast"}
    speeds = {"slow": 0.125, "middle": 0.5, "fast": 1.0}
    dealt = make_scheduler("by_class", ARMS, SchedulerContext(device_classes=classes, class_capability=speeds))
    assert dealt.choose(1, ["a", "b", "c"], rng()) == {"a": SMALL, "b": MIDDLE, "c": LARGE}
    told = SchedulerContext(device_classes=classes, class_capability=speeds, class_arms={"slow": MIDDLE})
    assert make_scheduler("by_class", ARMS, told).choose(1, ["a"], rng()) == {"a": MIDDLE}
    dealt.observe(out_of_memory("c", LARGE))
    assert dealt.choose_again(1, "c", rng()) == MIDDLE


def test_fedara_lowers_ranks_within_its_budget_and_favours_large_updates() -> None:
    arms = LORA_AXES.parse("0.0:2,0.0:16,0.5:4")
    scheduler = make_scheduler("fedara", arms, SchedulerContext(num_rounds=20))
    first = scheduler.choose(1, DEVICES, rng())
    assert {arm.rank for arm in first.values()} == {16}
    assert {arm.pruning_ratio for arm in first.values()} == {0.0}
    outcomes = [
        ArmOutcome(
            round_number=1,
            device_id=device_id,
            arm=first[device_id],
            sparsity=0.0,
            outcome=Outcome.ACCEPTED,
            adapter_delta=1.0 + k,
        )
        for k, device_id in enumerate(DEVICES)
    ]
    scheduler.observe_round(outcomes)
    ranks = [arm.rank for arm in scheduler.choose(20, DEVICES, rng()).values()]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]
    assert np.mean(ranks) == pytest.approx(4.0, abs=0.5)


def test_fedlps_plays_ratios_only() -> None:
    scheduler = make("fedlps")
    arms = [scheduler.choose(i, ["a"], rng(i))["a"] for i in range(40)]
    assert {arm.rank for arm in arms} == {8}
    assert len({arm.pruning_ratio for arm in arms}) > 10
