"""Configuration: checked on construction, and the same after a trip through TOML."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.methods.training import TrainingConfig
from broker_server.options import toml_value
from edge_runtime.errors import ExitCode
from edge_runtime.wire.arms import LORA_AXES, MAX_PRUNING_RATIO, ArmError
from edge_runtime.wire.work import Arm

TRAINING = TrainingConfig(num_rounds=10, num_local_steps=5, batch_size=4, max_length=64)
CONFIG = CoordinatorConfig(
    run_id="run-1",
    fleet="lab",
    broker_url="mqtt://localhost:1883",
    artifact_url="http://localhost/",
    artifact_digest="0" * 64,
    num_devices=3,
    training=TRAINING,
    arms=LORA_AXES.parse("0.0:8,0.25:8,0.5:4"),
)

CHANGES: list[dict[str, object]] = [
    {},
    {"test_file": 'a "quoted" \\ name'},
    {"num_evaluation_examples": None},
    {"broker_ca_file": "/etc/ca.pem", "wire_dtype": "float16"},
    {"training": dataclasses.replace(TRAINING, max_grad_norm=None, learning_rate=3e-5)},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_toml_there_and_back(changes: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert CoordinatorConfig.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_devices", 0, "a whole number from 1 to 2147483647"),
        ("num_devices", 2.0, "a whole number from 1 to 2147483647"),
        ("num_devices", True, "a whole number"),
        ("num_devices", 2**31, "a whole number"),
        ("round_deadline_s", 0.0, "a finite number above 0 to 1000000000"),
        ("round_deadline_s", float("inf"), "a finite number above 0"),
        ("registration_timeout_s", "120", "a finite number above 0"),
        ("rejoin_s", -1.0, "a finite number from 0"),
        ("rejoin_s", float("nan"), "a finite number from 0"),
        ("wire_dtype", "int4", "'float32' or 'float16'"),
        ("seed", -1, "a whole number from 0"),
        ("seed", "0", "a whole number from 0"),
        ("num_threads", 0, "a whole number from 1 to 1024"),
        ("num_evaluation_examples", -5, "a whole number from 1 to 2147483647 or none"),
        ("eval_sparse", 1, "true or false"),
        ("fleet", "lab/one", "1 to 64 letters, digits"),
        ("fleet", "+", "1 to 64 letters, digits"),
        ("fleet", "x" * 65, "1 to 64 letters, digits"),
        ("run_id", "", "1 to 64 letters, digits"),
        ("run_id", "a\0b", "1 to 64 letters"),
        ("artifact_url", "", "text of 1 to 1900 characters"),
        ("scheduler", 3, "text"),
        ("sparsity", float("nan"), "a finite number or none"),
        ("training", 3, "a TrainingConfig"),
    ],
)
def test_setting_of_a_wrong_type_or_out_of_range(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(CONFIG, **{name: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{name} is {value!r}, expected {expected}")
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_rounds", 0),
        ("batch_size", -1),
        ("num_local_steps", 1.5),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("lora_scaling", 0.0),
        ("max_grad_norm", -1.0),
        ("weight_decay", -0.1),
        ("num_warmup_steps", -1),
        ("final_learning_rate_ratio", 2.0),
        ("final_learning_rate_ratio", 0.0),
    ],
)
def test_training_setting_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}, expected"):
        dataclasses.replace(TRAINING, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_devices = 3", 'num_devices = "3"', "num_devices is '3', expected a whole number from 1"),
        ("num_devices = 3", "", "configuration lacks num_devices"),
        ("num_rounds = 10", "", r"table \[training\] lacks num_rounds"),
        ("rejoin_s = 5.0", "rejoins = 5.0", "has the key 'rejoins', which is not known; did you mean 'rejoin_s'"),
        ("num_rounds = 10", "num_rounds = 10\ncolour = 1", r"table \[training\] has the key 'colour'"),
        ("batch_size = 4", "batch_size = 4.0", "batch_size is 4.0, expected a whole number from 1"),
        ("ramp_rounds = 0", "ramp_rounds = []", r"ramp_rounds is \[\], expected a whole number from 0"),
        ('scope = "layer"', 'scope = "row"', "scope is 'row', expected 'layer' or 'global'"),
        ("importance_smoothing = 0.5", "importance_smoothing = 1", "expected a finite number from 0 to below 1"),
        ('arms = "0.0:8', 'arms = 3 # "', "arms is 3, expected"),
        ("[pruning]", "[[pruning]]", "pruning is .*, expected a table"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(old: str, new: str, said: str) -> None:
    text = CONFIG.to_toml()
    assert old in text
    with pytest.raises(ConfigError, match=said) as caught:
        CoordinatorConfig.from_toml(text.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_whole_number_will_do_where_any_number_is_expected() -> None:
    assert dataclasses.replace(TRAINING, learning_rate=1).learning_rate == 1.0


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {toml_value(text)}\n") == {"key": text}


@pytest.mark.parametrize("text", ["two\nlines", "\x00\x1b\x7f", "tab\t", "\u2028"])
def test_control_characters_survive_toml(text: str) -> None:
    config = dataclasses.replace(CONFIG, test_file=text)
    assert CoordinatorConfig.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(
    "text", ["", "not toml at [all", "run_id = 1", CONFIG.to_toml() + "\nunknown = 1\n", CONFIG.to_toml() + "x"]
)
def test_malformed_configuration(text: str) -> None:
    with pytest.raises(ConfigError):
        CoordinatorConfig.from_toml(text)


@pytest.mark.parametrize("text", ["", "8", "0.5", "0.5:0", "1.0:8", "0.96:8", "0.5:100000", "a:b", "0.5:8,", "-0.1:8"])
def test_arm_outside_its_range_has_its_own_exit_code(text: str) -> None:
    with pytest.raises(ArmError) as caught:
        LORA_AXES.parse(text)
    assert caught.value.exit_code is ExitCode.ARM_OUT_OF_RANGE


@given(st.lists(st.tuples(st.integers(0, 95), st.integers(1, 512)), min_size=1, max_size=5))
def test_arms_there_and_back(pairs: list[tuple[int, int]]) -> None:
    arms = LORA_AXES.parse(",".join(f"{percent / 100}:{rank}" for percent, rank in pairs))
    assert LORA_AXES.parse(LORA_AXES.format(arms)) == arms


@given(st.floats(0.0, MAX_PRUNING_RATIO))
def test_the_smallest_ratio_is_written_as_it_is_read(ratio: float) -> None:
    arms = (Arm(pruning_ratio=ratio, rank=8),)
    assert LORA_AXES.parse(LORA_AXES.format(arms)) == arms


def test_no_ratio_is_written_with_an_exponent() -> None:
    assert LORA_AXES.format((Arm(pruning_ratio=1e-05, rank=8), Arm(pruning_ratio=0.0, rank=4))) == "0.00001:8,0.0:4"


def rates(num_rounds: int, deploy_rounds: int, final_ratio: float = 0.1) -> list[float]:
    training = dataclasses.replace(TRAINING, num_rounds=num_rounds, final_learning_rate_ratio=final_ratio)
    pruning = dataclasses.replace(CONFIG.pruning, deploy_rounds=deploy_rounds, deploy_learning_rate_ratio=0.5)
    config = dataclasses.replace(CONFIG, training=training, pruning=pruning, sparsity=0.5)
    return [config.learning_rate_at(number) for number in range(1, num_rounds + 1)]


def test_learning_rate_falls_by_a_cosine() -> None:
    found = rates(10, deploy_rounds=0)
    assert found[0] == pytest.approx(2e-3)
    assert found[-1] == pytest.approx(2e-4)
    assert found == sorted(found, reverse=True)


def test_deploy_rounds_begin_again_at_their_share_of_the_learning_rate() -> None:
    found = rates(10, deploy_rounds=4)
    assert found[:6] == pytest.approx(rates(6, deploy_rounds=0))
    assert found[6] == pytest.approx(1e-3)
    assert found[9] == pytest.approx(2e-4)
    assert found[6:] == sorted(found[6:], reverse=True)


@pytest.mark.parametrize(
    ("num_rounds", "deploy_rounds", "final_ratio", "expected"),
    [
        pytest.param(1, 0, 0.1, [2e-3], id="one round trains at the full rate"),
        pytest.param(1, 1, 0.1, [1e-3], id="one deploy round, at theirs"),
        pytest.param(2, 5, 0.1, [1e-3, 2e-4], id="more deploy rounds than rounds"),
        pytest.param(2, 1, 0.8, [2e-3, 1.6e-3], id="never below the end of the cosine"),
    ],
)
def test_short_runs_have_learning_rates_too(
    num_rounds: int, deploy_rounds: int, final_ratio: float, expected: list[float]
) -> None:
    assert rates(num_rounds, deploy_rounds, final_ratio) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["0.5:" + "9" * 5_000, "1" * 5_000 + ":4", "1e999:4", "nan:4", "inf:4", "\u00b2:4"])
def test_arms_of_endless_numbers_are_refused(text: str) -> None:
    with pytest.raises(ArmError) as caught:
        LORA_AXES.parse(text)
    assert len(str(caught.value)) < 200
