"""The schedule: a ramp that never falls, recovery between prunings, the arm's ratio at the end."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.errors import ConfigError
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.schedule import is_deploy, ramp, segments

RAMP = PruningConfig(warmup_rounds=2, ramp_rounds=4, recovery_steps=10)
CONFIGS = st.builds(
    PruningConfig,
    warmup_rounds=st.integers(0, 5),
    ramp_rounds=st.integers(0, 10),
    recovery_steps=st.integers(1, 30),
)
RATIOS = st.integers(0, 95).map(lambda percent: percent / 100)


def test_cubic_ramp_after_the_warm_up() -> None:
    assert [ramp(RAMP, t) for t in (0, 2, 3, 4, 6, 9)] == pytest.approx([0, 0, 1 - 0.75**3, 1 - 0.5**3, 1, 1])


def test_without_a_ramp_the_whole_ratio_is_played_at_once() -> None:
    (only,) = segments(PruningConfig(), 0.3, 1, 100)
    assert (only.at_step, only.pruning_ratio) == (1, 0.3)  # not rounded: it is the arm's own


def test_without_a_ramp_the_warm_up_comes_first() -> None:
    config = PruningConfig(warmup_rounds=2)
    assert [segments(config, 0.5, n, 20)[0].pruning_ratio for n in (1, 2, 3)] == [0.0, 0.0, 0.5]


def test_an_assignment_long_enough_is_pruned_inside() -> None:
    first = segments(RAMP, 0.5, 3, 30)
    assert [s.at_step for s in first] == [1, 11, 21]
    assert [s.pruning_ratio for s in first] == sorted({s.pruning_ratio for s in first})
    (short,) = segments(RAMP, 0.5, 3, 19)
    assert short.pruning_ratio == first[-1].pruning_ratio


@given(CONFIGS, RATIOS, st.integers(1, 60))
def test_ratios_never_fall_and_end_at_the_arms(config: PruningConfig, ratio: float, num_steps: int) -> None:
    rounds = config.warmup_rounds + config.ramp_rounds + 1
    played = [s.pruning_ratio for n in range(1, rounds + 1) for s in segments(config, ratio, n, num_steps)]
    assert played == sorted(played)
    assert played[-1] == ratio
    assert all(0.0 <= p <= ratio for p in played)


@given(CONFIGS, RATIOS, st.integers(1, 20), st.integers(1, 60))
def test_recovery_between_prunings_and_after_the_last(
    config: PruningConfig, ratio: float, round_number: int, num_steps: int
) -> None:
    steps = [s.at_step for s in segments(config, ratio, round_number, num_steps)]
    assert steps[0] == 1
    ends = [*steps[1:], num_steps + 1]
    if len(steps) > 1:
        assert all(end - step >= config.recovery_steps for step, end in zip(steps, ends, strict=True))


def test_the_last_rounds_deploy() -> None:
    config = PruningConfig(deploy_rounds=2)
    assert [is_deploy(config, n, 5) for n in range(1, 6)] == [False, False, False, True, True]
    assert not is_deploy(PruningConfig(), 5, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("importance", "gradient"),
        ("scope", "tensor"),
        ("importance_every_steps", 0),
        ("recovery_steps", 0),
        ("ramp_rounds", -1),
        ("deploy_rounds", -1),
        ("protect_first", -2),
        ("importance_smoothing", 1.0),
        ("importance_smoothing", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(PruningConfig(), **{name: value})  # type: ignore[arg-type]
