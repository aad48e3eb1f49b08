"""A method by name, on the command line and in ``config.toml``: its settings count where nothing else is said."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.experiments.run.resolve import kept_settings, resolve
from broker_server.methods.by_name import method_of, passed_over
from broker_server.methods.presets import PRESETS, Preset
from broker_server.options import changed, flat
from edge_runtime.wire.arms import ArmError
from tests.broker_server.methods.fleet_file import fleet_file
from tests.broker_server.other_axes import ONE_ARM, THREE_AXES

TRAINING = """[training]
num_rounds = 20
num_local_steps = 5
batch_size = 4
max_length = 64
"""


def text_of(keys: str) -> str:
    """The file of a fleet that says so much more."""
    return fleet_file(f"{keys}\n{TRAINING}")


def fleet_of(method: str, more: str = "") -> str:
    """The file of a fleet; a method whose devices make no steps is told of none."""
    text = text_of(f'method = "{method}"\n{more}')
    return text.replace("num_local_steps = 5\n", "") if "local_steps" in passed_over(method) else text


BY_METHOD = ("scheduler", "arms", "importance", "prune_scope", "ramp_rounds", "deploy_rounds", "sparsity")


def _chosen(settings: object) -> dict[str, Any]:
    return {name: value for name, value in flat(settings).items() if name in BY_METHOD}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("fedspine", {"scheduler": "fedspine", "importance": "lora", "prune_scope": "global", "deploy_rounds": 6}),
        ("fedit", {"scheduler": "fixed", "arms": "0.0:8", "aggregation": "fedit", "sparsity": 0.0}),
        ("one_shot", {"arms": "0.25:8", "importance": "magnitude", "sparsity": 0.25}),
        ("loraprune", {"arms": "0.25:8", "ramp_rounds": 10, "sparsity": 0.25}),
    ],
)
def test_a_run_takes_the_settings_of_its_method(method: str, expected: dict[str, object]) -> None:
    settings = flat(resolve({"method": method, "rounds": 20}))

    assert settings["method"] == method
    assert {name: settings[name] for name in expected} == expected


def test_what_is_given_wins_over_the_method_and_what_is_given_in_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "fedit"\nscheduler = "random"\n')

    settings = resolve({"arms": "0.0:4,0.5:4", "sparsity": 0.5}, file)

    assert (settings.scheduler, settings.aggregation) == ("random", "fedit")
    assert flat(settings)["arms"] == "0.0:4,0.5:4"
    assert settings.sparsity == 0.5


def test_the_method_sees_the_grid_and_the_ratio_that_are_given() -> None:
    assert flat(resolve({"method": "one_shot", "sparsity": 0.5}))["arms"] == "0.5:8"
    assert flat(resolve({"method": "fedspine", "rounds": 50}))["deploy_rounds"] == 15


def test_settings_of_a_method_are_stored_in_full_and_read_back_equal(tmp_path: Path) -> None:
    settings = resolve({"method": "fedspine", "rounds": 20})
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml())
    stored = tomllib.loads(file.read_text())

    assert (stored["method"], stored["scheduler"], stored["deploy_rounds"]) == ("fedspine", "fedspine", 6)
    assert resolve({}, file) == settings


@pytest.mark.parametrize("method", PRESETS)
def test_a_fleet_takes_the_settings_that_a_run_would(method: str) -> None:
    fleet = CoordinatorConfig.from_toml(fleet_of(method))
    run = resolve({"method": method, "rounds": 20, "devices": 3})

    of_run = _chosen(run)
    if not run.pruning.deploy_rounds:
        del of_run["sparsity"]  # a fleet deploys only what it was told to
    assert _chosen(fleet) == of_run
    assert CoordinatorConfig.from_toml(fleet.to_toml()) == fleet


def test_what_the_file_of_a_fleet_says_wins_over_the_method_also_in_its_tables() -> None:
    text = text_of('method = "fedspine"\narms = "0.0:8,0.5:4"\nscheduler = "random"')
    fleet = CoordinatorConfig.from_toml(f"{text}[pruning]\ndeploy_rounds = 2\n")

    assert (fleet.scheduler, fleet.pruning.deploy_rounds, fleet.pruning.ramp_rounds) == ("random", 2, 2)
    assert fleet.pruning.importance == "lora"
    assert fleet.sparsity == 0.5


def test_a_fleet_without_a_method_needs_its_arms_as_before() -> None:
    with pytest.raises(ConfigError, match="configuration lacks arms"):
        CoordinatorConfig.from_toml(text_of(""))


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"method": "fedti"}, r"^--method 'fedti' is not known; did you mean 'fedit'\?$"),
        ({"method": "gone_away:PRESET"}, r"^--method 'gone_away:PRESET' cannot be imported \(ModuleNotFoundError"),
        ({"method": f"{__name__}:FAILS"}, r"cannot say its settings \(KeyError: 'ranks'\): fix it, or choose another$"),
        ({"method": f"{__name__}:WRONG"}, "^--method.*colour"),
    ],
)
def test_a_method_that_cannot_be_used_is_one_line(given: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        resolve(given)


def test_an_unknown_method_in_the_file_of_a_fleet_is_called_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text_of('method = "fedti"'))

    with pytest.raises(ConfigError, match=r"config\.toml: method 'fedti' is not known; did you mean 'fedit'\?$"):
        CoordinatorConfig.load(tmp_path / "config.toml")


def test_arms_that_cannot_be_are_called_by_their_name() -> None:
    with pytest.raises(ArmError, match=r"^--arms"):
        resolve({"method": "fedit", "arms": "2:8"})


TASK = {"task": "text-classification", "model": "m", "data": "d.jsonl"}


@pytest.mark.parametrize(
    ("method", "arms", "fault"),
    [
        ("probe", "0.0:8", r"arm '0\.0:8' is not RATIO, such as 0\.25$"),
        ("probe", "rank=8", r"arm 'rank=8' is not RATIO, such as 0\.25$"),
        ("fedit", "0.5", r"arm '0\.5' is not RATIO:RANK, such as 0\.25:8$"),
        ("fedit", "0.5:8:batch_size=4", r"arm '0\.5:8:batch_size=4' is not RATIO:RANK, such as 0\.25:8$"),
        (THREE_AXES, "0.5:8:batch_size=65", r"rank 1 to 512, batch size 1 to 64$"),
        (ONE_ARM, "0.0:8", r"arm '0\.0:8' is given, but this method has one arm: leave it out$"),
    ],
)
def test_arms_that_the_method_does_not_play_are_refused_in_one_line(method: str, arms: str, fault: str) -> None:
    with pytest.raises(ArmError, match=f"^--arms: .*{fault}"):
        resolve({**TASK, "method": method, "arms": arms})
    with pytest.raises(ArmError, match=f"^arms: .*{fault}"):
        CoordinatorConfig.from_toml(text_of(f'method = "{method}"\narms = "{arms}"'))


@pytest.mark.parametrize(
    ("method", "given", "arms"),
    [
        ("probe", None, "0.0"),
        ("probe", "0.25", "0.25"),
        (THREE_AXES, None, "0.0:8,0.5:4:batch_size=2"),
        (THREE_AXES, "0.5:4:16", "0.5:4:batch_size=16"),
        (ONE_ARM, None, ""),
        (ONE_ARM, "", ""),
    ],
)
def test_arms_are_those_of_the_method_and_are_kept_as_it_writes_them(
    method: str, given: str | None, arms: str, tmp_path: Path
) -> None:
    settings = resolve({**TASK, "method": method, "arms": given})
    assert flat(settings)["arms"] == arms
    assert settings.axes == method_of(method).axes
    (tmp_path / "run.toml").write_text(settings.to_toml())
    assert kept_settings(tmp_path / "run.toml") == settings
    assert changed(settings, {"seed": 5}).arms == settings.arms
    said = "" if given is None else f'arms = "{given}"'
    fleet = CoordinatorConfig.from_toml(fleet_of(method, said))
    assert fleet.arms == settings.arms
    assert CoordinatorConfig.from_toml(fleet.to_toml()) == fleet


def test_the_ratio_of_the_compact_model_is_one_that_the_method_plays() -> None:
    assert resolve({**TASK, "method": "probe", "arms": "0.0,0.25"}).sparsity == 0.25
    assert resolve({**TASK, "method": ONE_ARM}).sparsity == 0.0


def test_a_method_that_does_not_prune_has_no_deploy_rounds() -> None:
    with pytest.raises(ConfigError, match=r"deploy_rounds is 1, but .* does not prune: leave them out$"):
        resolve({**TASK, "method": ONE_ARM, "deploy_rounds": 1})


def test_a_value_that_decides_how_another_is_written_is_checked_first() -> None:
    with pytest.raises(ConfigError, match="method is 5, expected text"):
        CoordinatorConfig.from_toml(text_of('arms = "0.0:8"\nmethod = 5'))


NOTHING: dict[str, Any] = {}
FAILS = Preset(label="", about="", settings=lambda _: NOTHING["ranks"])
WRONG = Preset(label="", about="", settings=lambda _: {"colour": "red"})
