"""Schedulers: what they promise, what they remember, and that a restored one goes on as if nothing had happened."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.config import parse_arms
from broker_server.errors import ConfigError
from broker_server.round_types import Outcome
from broker_server.scheduler import SCHEDULERS, ArmOutcome, make_scheduler
from edge_runtime.wire.messages import Arm, FailureReason

ARMS = parse_arms("0.0:8,0.25:8,0.5:4")
LARGE, MIDDLE, SMALL = ARMS
DEVICES = [f"board-{i}" for i in range(6)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def out_of_memory(device_id: str, arm: Arm) -> ArmOutcome:
    return ArmOutcome(
        round_number=1,
        device_id=device_id,
        arm=arm,
        sparsity=0.0,
        outcome=Outcome.FAILED,
        reason=FailureReason.INSUFFICIENT_MEMORY,
    )


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_device_gets_an_arm_of_the_configuration(name: str) -> None:
    choices = make_scheduler(name, ARMS).choose(1, DEVICES, rng())
    assert sorted(choices) == DEVICES
    assert set(choices.values()) <= set(ARMS)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@given(rounds=st.integers(0, 6), seed=st.integers(0, 1000))
def test_restored_scheduler_goes_on_the_same(name: str, rounds: int, seed: int) -> None:
    scheduler = make_scheduler(name, ARMS)
    for round_number in range(1, rounds + 1):
        scheduler.choose(round_number, DEVICES, rng(seed + round_number))
    scheduler.observe(out_of_memory("board-1", MIDDLE))
    restored = make_scheduler(name, ARMS)
    restored.restore(json.loads(json.dumps(scheduler.state())))
    assert restored.choose(9, DEVICES, rng(9)) == scheduler.choose(9, DEVICES, rng(9))


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@given(seed=st.integers(0, 1000))
def test_arm_that_was_too_large_is_not_played_again(name: str, seed: int) -> None:
    scheduler = make_scheduler(name, ARMS)
    scheduler.observe(out_of_memory("board-1", MIDDLE))
    for round_number in range(1, 8):
        assert scheduler.choose(round_number, DEVICES, rng(seed + round_number))["board-1"] == SMALL


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_other_devices_may_still_play_it(name: str) -> None:
    scheduler = make_scheduler(name, ARMS)
    scheduler.observe(out_of_memory("board-1", LARGE))
    assert scheduler.feasible("board-2") == [0, 1, 2]
    assert scheduler.feasible("board-1") == [1, 2]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_device_that_no_arm_fits_is_offered_the_cheapest(name: str) -> None:
    scheduler = make_scheduler(name, ARMS)
    scheduler.observe(out_of_memory("board-1", SMALL))
    assert scheduler.feasible("board-1") == []
    assert scheduler.choose_again(1, "board-1", rng()) is None
    assert scheduler.choose(2, ["board-1"], rng()) == {"board-1": SMALL}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_other_failures_make_no_arm_infeasible(name: str) -> None:
    scheduler = make_scheduler(name, ARMS)
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
    with pytest.raises(ConfigError, match="fixed, random, uniform"):
        make_scheduler("oracle", ARMS)
