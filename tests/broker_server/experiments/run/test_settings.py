"""Settings of the whole run: task defaults, under a file, under options."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import typer.main

from broker_server import cli
from broker_server.cli import app
from broker_server.emulation.fleet import load_fleet
from broker_server.errors import ConfigError
from broker_server.experiments.run import preparation
from broker_server.experiments.run.processes import take_password
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import options_of
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import PASSWORD_VARIABLE
from edge_runtime.wire.arms import LORA_AXES, ArmError

CLASSIFY = {"task": "text-classification", "model": "m", "data": "d.jsonl"}


def test_without_options_the_built_in_model_learns_docstrings_split_by_package() -> None:
    settings = resolve({})

    assert (settings.task, settings.model, settings.data) == ("causal-lm", "", "")
    assert (settings.num_devices, settings.split) == (4, "by-key")


def test_without_options_the_bandit_chooses_on_unequal_devices_and_all_of_the_method_is_on() -> None:
    settings = resolve({})

    assert (settings.method, settings.scheduler, settings.pruning.importance) == ("fedspine", "fedspine", "lora")
    assert settings.pruning.ramp_rounds
    assert 0 < settings.pruning.deploy_rounds < settings.training.num_rounds
    assert (settings.is_emulated, settings.sparsity) == (True, 0.25)
    fleet = load_fleet(settings.emulate).dealt(settings.device_ids)
    assert len({fleet.class_of(device_id).compute_factor for device_id in settings.device_ids}) > 1
    assert not resolve({"emulate": "none"}).is_emulated


@pytest.mark.parametrize("given", [{"targets": "q_proj"}, {"top_blocks": 1}])
def test_units_without_factors_are_not_scored_by_them_unless_told_so(given: dict[str, object]) -> None:
    assert resolve(given).pruning.importance == "magnitude"
    assert resolve({**given, "importance": "lora"}).pruning.importance == "lora"


def test_a_file_overrides_defaults_and_options_override_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('rounds = 3\nseed = 5\narms = "0.5:4"\n')

    settings = resolve({"rounds": 7, "devices": None}, config)

    assert (settings.training.num_rounds, settings.seed, settings.num_devices) == (7, 5, 4)
    assert settings.arms == LORA_AXES.parse("0.5:4")


def test_settings_survive_their_file(tmp_path: Path) -> None:
    settings = resolve({**CLASSIFY, "model": 'odd"\\\nname\x7f', "learning_rate": 3e-4, "threads": 2})
    config = tmp_path / "run.toml"
    config.write_text(settings.to_toml())

    assert resolve({}, config) == settings


def test_emulated_classes_under_their_earlier_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve({"fleet": "jetson"}).emulate == "jetson"
    assert not resolve({"fleet": ""}).is_emulated

    assert cli.call(["run", "--fleet", "none.toml"]) == ExitCode.USAGE

    note, error = capsys.readouterr().err.splitlines()
    assert note == "fedspine: note: --fleet is called --emulate now"
    assert "--emulate: fleet none.toml cannot be read" in error


@pytest.mark.parametrize(("written", "norm"), [(0.0, None), (0, None), (0.5, 0.5)])
def test_clipping_reaches_the_coordinator_and_0_is_off(written: float, norm: float | None, tmp_path: Path) -> None:
    settings = resolve({"max_grad_norm": written})
    config = settings.coordinator_config(
        run_id="run", broker_url="", artifact_url="http://localhost/", artifact_digest=""
    )
    (tmp_path / "run.toml").write_text(settings.to_toml())

    assert config.training.max_grad_norm == norm
    assert resolve({}, tmp_path / "run.toml") == settings


def test_class_balance_reaches_the_coordinator() -> None:
    config = resolve({**CLASSIFY, "class_balance": 0.5}).coordinator_config(
        run_id="run", broker_url="", artifact_url="http://localhost/", artifact_digest=""
    )

    assert config.training.class_balance == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "chess"}, "--task is 'chess', expected"),
        ({"model": "m"}, "a model needs its task"),
        ({"task": "text-classification"}, "text-classification needs --model"),
        ({"task": "text-classification", "model": "m"}, "text-classification needs --data"),
        ({"rounds": 0}, "--rounds is 0, expected a whole number from 1"),
        ({"threads": -1}, "--threads is -1, expected a whole number from 0"),
        ({"broker_port": 70000}, "--broker-port is 70000"),
        ({"rounds": "three"}, "--rounds is 'three'"),
        ({"wire_dtype": "int4"}, "--wire-dtype is 'int4', expected 'float32' or 'float16'"),
        ({"split": "odd"}, "expected iid"),
        ({"broker": "localhost"}, "broker 'localhost' is not known"),
        ({"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ({"class_balance": 0.5}, "--class-balance is for text-classification"),
        ({**CLASSIFY, "class_balance": 1.5}, "--class-balance is 1.5"),
        ({"base": "int2"}, "--base is 'int2'"),
        ({"colour": "red"}, "key 'colour' is not known"),
        ({"fleet_name": "lab/+"}, "--fleet-name 'lab/\\+' is not allowed"),
        ({"fleet_name": "#"}, "--fleet-name '#' is not allowed"),
        ({"fleet_name": "x" * 65}, "--fleet-name 'x+' is not allowed"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(options)


@pytest.mark.parametrize("options", [{"arms": "0.99:8"}, {"arms": "8"}, {"arms": "0.5:0"}, {"sparsity": 1.0}])
def test_an_arm_outside_its_range_has_its_own_error(options: dict[str, object]) -> None:
    with pytest.raises(ArmError):
        resolve(options)


def test_a_sparsity_outside_its_range_is_not_called_an_arm() -> None:
    with pytest.raises(ArmError, match=r"^--sparsity is 0\.97, expected a pruning ratio of 0 to 0\.95$"):
        resolve({"sparsity": 0.97})


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_bytes(b"\xff = ")

    with pytest.raises(ConfigError, match="cannot be read"):
        resolve({}, config)


def test_every_setting_is_an_option_of_the_command_line() -> None:
    command = typer.main.get_command(app).get_command(None, "run")  # type: ignore[attr-defined]

    options = {parameter.name for parameter in command.params}

    assert options == {one.name for one in options_of(RunSettings).values()} | {
        "fleet",
        "out",
        "resume",
        "config",
        "password_file",
    }


def test_every_run_has_a_fleet_of_its_own_unless_one_is_named() -> None:
    def fleet(run_id: str, **options: object) -> str:
        settings = resolve(options)
        return settings.coordinator_config(
            run_id=run_id, broker_url="", artifact_url="http://localhost/", artifact_digest=""
        ).fleet

    assert fleet("run-1") != fleet("run-2")
    assert fleet("run-1") == fleet("run-1"), "a run that goes on finds its devices again"
    assert fleet("run-1", fleet_name="lab") == "lab"


def test_a_password_moves_from_the_url_into_the_environment() -> None:
    environment: dict[str, str] = {}

    settings = take_password(resolve({"broker": "mqtt://lab:s%40cret@broker.example:1884"}), environment)

    assert settings.broker == "mqtt://lab@broker.example:1884"
    assert environment == {PASSWORD_VARIABLE: "s@cret"}


def test_settings_without_a_password_stay_as_they_are() -> None:
    for broker in ("auto", "mqtt://broker.example", "mqtt://lab@broker.example"):
        settings = resolve({"broker": broker})
        assert take_password(settings, {}) == settings


def test_help_of_an_option_names_its_choices_and_one_default() -> None:
    for name, one in options_of(RunSettings).items():
        assert one.help.count("(default:") <= 1, name
        if typing.get_origin(one.kind) is typing.Literal:
            assert all(choice in one.help for choice in typing.get_args(one.kind)), name


@pytest.mark.parametrize(
    ("arms", "sparsity"), [("0.0:8", 0.0), ("0.0:8,0.25:8", 0.25), ("0.5:4,0.3:4,0.0:8", 0.3), ("0.75:2", 0.75)]
)
def test_compact_model_is_cut_by_a_ratio_that_devices_train(arms: str, sparsity: float) -> None:
    assert resolve({"arms": arms}).sparsity == sparsity
    assert resolve({"arms": arms, "sparsity": 0.1}).sparsity == 0.1


def test_the_base_model_is_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")

    def base(**given: object) -> str | None:
        return preparation.base_model(resolve({**CLASSIFY, **given}))

    assert base(model="minilm") == str(tmp_path / "minilm")
    assert base(model="org/minilm") == "org/minilm"
    assert base(task="causal-lm", model="", artifact="made-earlier") is None
    assert base(model="minilm", artifact="made-earlier") == str(tmp_path / "minilm")
    assert base(model="./gone") == str(tmp_path / "gone")
