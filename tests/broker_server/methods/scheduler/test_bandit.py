"""Real schedulers on the simulated fleet of ``benchmarks/bandit_fleet.py``, against the oracle: bounds that hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.bandit_figures import exponent, figures, recovery, settled, time_ratios
from benchmarks.bandit_fleet import ARMS, Drift, SimulatedFleet, fleet, play
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import SCHEDULERS, ArmOutcome, make_scheduler
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm

SCALE = 0.2
"""16 devices: 6, 8 and 2."""
SEEDS = (0, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_fedspine_is_as_fast_as_the_oracle_after_25_rounds(seed: int) -> None:
    classes = fleet(SCALE)
    got = figures(play("fedspine", classes, 50, seed), play("oracle", classes, 50, seed))
    assert got.settled_round is not None
    assert got.settled_round <= 25
    assert 0.95 <= got.round_time_ratio <= 1.05
    assert got.speed_ratio >= 0.93
    assert got.infeasible_ratio < 0.02
    assert got.regret_exponent < 0.8
    assert got.late_exponent < 1.0


@pytest.mark.parametrize("name", ["slow", "middle"])
@pytest.mark.parametrize("seed", SEEDS)
def test_fedspine_recovers_within_10_rounds_when_a_class_takes_three_times_as_long(name: str, seed: int) -> None:
    classes, drift = fleet(SCALE), Drift(name=name, from_round=21)
    played, oracle = play("fedspine", classes, 40, seed, drift), play("oracle", classes, 40, seed, drift)
    rounds = recovery(time_ratios(played, oracle), drift.from_round)
    assert rounds is not None
    assert rounds <= 10
    assert figures(played, oracle).infeasible_ratio < 0.02


def test_slow_devices_are_pruned_and_fast_ones_are_not() -> None:
    last = play("fedspine", fleet(SCALE), 25, 0)[-1]
    ratios = {name: ratio for name, (ratio, _) in last.arms.items()}
    assert ratios["slow"] > 0.75
    assert ratios["fast"] < 0.1
    assert ratios["fast"] < ratios["middle"] < ratios["slow"]
    assert last.idle_ratio < 0.2


def test_bandits_beat_chance_and_the_model_beats_plain_bandits() -> None:
    classes = fleet(SCALE)
    oracle = play("oracle", classes, 40, 0)
    regret = {
        name: figures(play(name, classes, 40, 0), oracle).regret for name in ("fedspine", "ducb", "thompson", "random")
    }
    assert regret["fedspine"] < 0.3 * min(regret["ducb"], regret["thompson"])
    assert max(regret["ducb"], regret["thompson"]) < regret["random"]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_infeasible_arm_and_what_is_costlier_is_never_played_again(name: str) -> None:
    simulated = SimulatedFleet(fleet(SCALE), 3)
    scheduler = make_scheduler(name, ARMS, simulated.context(12))
    failed: dict[str, list[Arm]] = {}
    observe = scheduler.observe

    def watched(outcome: ArmOutcome) -> None:
        if outcome.outcome is not Outcome.ACCEPTED:
            assert not any(LORA_AXES.costs_at_least(outcome.arm, arm) for arm in failed.get(outcome.device_id, []))
            failed.setdefault(outcome.device_id, []).append(outcome.arm)
        observe(outcome)

    scheduler.observe = watched  # type: ignore[method-assign]
    for round_number in range(1, 13):
        simulated.play(scheduler, round_number)
    assert name in {"oracle", "by_class"} or failed


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_scheduler_restored_in_the_middle_plays_the_same(name: str) -> None:
    whole, cut = SimulatedFleet(fleet(SCALE), 5), SimulatedFleet(fleet(SCALE), 5)
    one = make_scheduler(name, ARMS, whole.context(10))
    two = make_scheduler(name, ARMS, cut.context(10))
    for round_number in range(1, 11):
        expected = whole.play(one, round_number)
        again = make_scheduler(name, ARMS, cut.context(10))
        again.load_json(json.loads(json.dumps(two.to_json())))
        two = again
        assert cut.play(two, round_number) == expected


def test_figures_of_made_up_curves() -> None:
    assert settled(np.array([2.0] * 5 + [1.0] * 10)) == 6
    assert settled(np.array([1.0] * 10 + [2.0] * 5)) is None
    assert recovery(np.array([1.0] * 10 + [3.0, 2.0] + [1.0] * 8), 11) == 2
    assert exponent(np.sqrt(np.arange(1, 101)), 5) == pytest.approx(0.5)
