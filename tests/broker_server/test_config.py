"""Configuration: checked on construction, and the same after a trip through TOML."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.config import CoordinatorConfig, TrainingConfig, format_arms, parse_arms
from broker_server.errors import ArmError, ConfigError
from edge_runtime.wire.errors import ExitCode

TRAINING = TrainingConfig(num_rounds=10, num_local_steps=5, batch_size=4, max_length=64)
CONFIG = CoordinatorConfig(
    run_id='a "quoted" \\ name',
    fleet="lab",
    broker_url="mqtt://localhost:1883",
    artifact_url="http://localhost/",
    artifact_digest="0" * 64,
    num_devices=3,
    training=TRAINING,
    arms=parse_arms("0.0:8,0.25:8,0.5:4"),
)

CHANGES: list[dict[str, object]] = [
    {},
    {"test_file": "data/test.jsonl"},
    {"num_evaluation_examples": None},
    {"broker_ca_file": "/etc/ca.pem", "wire_dtype": "float16"},
    {"training": dataclasses.replace(TRAINING, max_grad_norm=None, learning_rate=3e-5)},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_toml_there_and_back(changes: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert CoordinatorConfig.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_devices", 0),
        ("round_deadline_s", 0.0),
        ("rejoin_s", -1.0),
        ("wire_dtype", "int4"),
    ],
)
def test_setting_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        dataclasses.replace(CONFIG, **{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_rounds", 0),
        ("batch_size", -1),
        ("learning_rate", float("nan")),
        ("lora_scaling", 0.0),
        ("max_grad_norm", -1.0),
        ("final_learning_rate_ratio", 2.0),
    ],
)
def test_training_setting_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(TRAINING, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "not toml at [all", "run_id = 1", CONFIG.to_toml() + "\nunknown = 1\n", CONFIG.to_toml() + "x"]
)
def test_malformed_configuration(text: str) -> None:
    with pytest.raises(ConfigError):
        CoordinatorConfig.from_toml(text)


@pytest.mark.parametrize("text", ["", "8", "0.5", "0.5:0", "1.0:8", "0.96:8", "0.5:100000", "a:b", "0.5:8,", "-0.1:8"])
def test_arm_outside_its_range_has_its_own_exit_code(text: str) -> None:
    with pytest.raises(ArmError) as caught:
        parse_arms(text)
    assert caught.value.exit_code is ExitCode.ARM_OUT_OF_RANGE


@given(st.lists(st.tuples(st.integers(0, 95), st.integers(1, 512)), min_size=1, max_size=5))
def test_arms_there_and_back(pairs: list[tuple[int, int]]) -> None:
    arms = parse_arms(",".join(f"{percent / 100}:{rank}" for percent, rank in pairs))
    assert parse_arms(format_arms(arms)) == arms


def test_learning_rate_falls_by_a_cosine() -> None:
    rates = [TRAINING.learning_rate_at(i) for i in range(1, 11)]
    assert rates[0] == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(2e-4)
    assert rates == sorted(rates, reverse=True)


def test_one_round_trains_at_the_full_rate() -> None:
    assert dataclasses.replace(TRAINING, num_rounds=1).learning_rate_at(1) == pytest.approx(2e-3)
