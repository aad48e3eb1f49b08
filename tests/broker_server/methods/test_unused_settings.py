"""Options that a method passes over are refused where a person gave them, and stand in none of its files."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Final

import pytest

from broker_server.config import CoordinatorConfig, FederationConfig
from broker_server.errors import ConfigError
from broker_server.experiments.compare.config import Comparison
from broker_server.experiments.run.resolve import kept_settings, resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.by_name import OF_METHODS, method_of, passed_over
from broker_server.methods.presets import PRESETS
from broker_server.options import flat, options_of, toml_value
from tests.broker_server.methods.fleet_file import fleet_file

OPTIONS: Final = options_of(FederationConfig)


def of_run(method: str) -> dict[str, object]:
    """Return the settings of a run of a method; the built-in model has no classes."""
    has_classes = method.startswith("probe") or PRESETS[method].work in {"zero_order", "mixed"}
    return {
        "method": method,
        **({"task": "text-classification", "model": "m", "data": "d.jsonl"} if has_classes else {}),
    }


def fleet(method: str, name: str = "", value: object = None) -> str:
    """A coordinator's file of a method, with one option more."""
    tables: dict[str, dict[str, object]] = {
        "": {},
        "training": {},
        "pruning": {},
        "zero_order": {},
        "mixed": {},
        "split_tuning": {},
    }
    for needed, given in (("rounds", 4), ("local_steps", 2), ("batch_size", 4), ("max_length", 16), (name, value)):
        if needed and (needed == name or needed not in passed_over(method)):
            *above, key = OPTIONS[needed].path
            tables["".join(above)][key] = given
    lines = [
        "\n".join([f"[{table}]" if table else "", *(f"{key} = {toml_value(given)}" for key, given in values.items())])
        for table, values in tables.items()
    ]
    return fleet_file("\n".join([f'method = "{method}"', *lines]))


def a_value(name: str) -> object:
    """The default of an option; where it has none, what a run of another method takes, or any."""
    default = OPTIONS[name].default
    if default is None:
        return "some=1"
    return flat(resolve({"method": "fedit"}))[name] if default is dataclasses.MISSING else default


PASSED_OVER: Final = [(method, name) for method in PRESETS for name in sorted(passed_over(method))]


@pytest.mark.parametrize(("method", "name"), PASSED_OVER)
def test_what_a_method_does_not_use_is_refused_in_one_line_even_at_its_default(method: str, name: str) -> None:
    if name in PRESETS_SAY.get(method, ()):
        return  # as it is
    value = a_value(name)
    line = f"--{name.replace('_', '-')} is {value}, but {method} does not use it: leave it out"

    with pytest.raises(ConfigError) as caught:
        resolve({**of_run(method), name: value})
    assert str(caught.value) == line

    with pytest.raises(ConfigError) as caught:
        CoordinatorConfig.from_toml(fleet(method, name, value))
    assert str(caught.value) == line.replace(f"--{name.replace('_', '-')}", name)


PRESETS_SAY: Final = {
    method: {"importance"}
    for method in (
        "probe",
        "probe_softmax",
        "mezo",
        "decomfl",
        "fedspzo",
        "fedkseed",
        "topzo",
        "mixed",
        "zowarmup",
        "split",
    )
}
"""Options that presets say themselves although the method does not use them: their value may be said again."""


@pytest.mark.parametrize("method", PRESETS)
def test_what_a_method_uses_may_be_given(method: str) -> None:
    own = flat(resolve(of_run(method)))
    for name in sorted(OF_METHODS - passed_over(method)):
        if name in own:
            assert flat(resolve({**of_run(method), name: own[name]})) == own


def test_methods_use_what_there_is_and_every_option_is_used_by_one() -> None:
    used = [method_of(method).uses for method in PRESETS]
    assert frozenset().union(*used) - {"prune_scope", "protect_first", "protect_last"} == OF_METHODS
    assert OPTIONS.keys() >= OF_METHODS


FIRST_ORDER: Final = {
    "max_grad_norm",
    "warmup_steps",
    "accumulation_steps",
    "class_balance",
    "aggregation",
    "importance",
}


@pytest.mark.parametrize(
    ("method", "without", "with_"),
    [
        ("fedit", {"zo_cut", "zo_epsilon"}, FIRST_ORDER),
        ("mezo", {"weight_decay", "ramp_rounds", *FIRST_ORDER}, {"local_steps", "lora_scaling", "zo_cut"}),
        ("probe_softmax", {"zo_cut", "lora_scaling", *FIRST_ORDER}, {"local_steps", "learning_rate", "weight_decay"}),
        ("probe", {"zo_cut", "local_steps", "learning_rate", *FIRST_ORDER}, {"weight_decay", "batch_size"}),
    ],
)
def test_each_kind_of_work_has_settings_of_its_own(method: str, without: set[str], with_: set[str]) -> None:
    assert without <= passed_over(method)
    assert not with_ & passed_over(method)


@pytest.mark.parametrize("method", PRESETS)
def test_files_have_only_what_the_method_uses_and_are_read_back_equal(method: str, tmp_path: Path) -> None:
    settings = resolve(of_run(method))
    (tmp_path / "run.toml").write_text(settings.to_toml())
    assert not tomllib.loads(settings.to_toml()).keys() & passed_over(method)
    assert kept_settings(tmp_path / "run.toml") == settings

    config = CoordinatorConfig.from_toml(fleet(method))
    assert CoordinatorConfig.from_toml(config.to_toml()) == config


def test_settings_made_in_python_are_refused_too_where_they_differ_from_the_default() -> None:
    settings = resolve(of_run("mezo"))
    other = dataclasses.replace(settings.training, max_grad_norm=0.5)
    with pytest.raises(ConfigError, match=r"^--max-grad-norm is 0\.5, but mezo does not use it: leave it out$"):
        dataclasses.replace(settings, training=other)


COMPARISON: Final = """
title = "t"
methods = ["fedit", "{method}"]
[run]
task = "text-classification"
model = "m"
data = "d.jsonl"
rounds = 3
local_steps = 7
{run}
[method.{method}]
{own}
"""


def comparison(path: Path, method: str, *, run: str = "", own: str = "") -> list[RunSettings]:
    path.write_text(COMPARISON.format(method=method, run=run, own=own))
    found = Comparison.load(path)
    return [found.settings(key) for key in found.run_keys if key.seed == 0]


def test_a_comparison_refuses_what_one_of_its_methods_does_not_use(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for given in ({"run": "max_grad_norm = 0.5"}, {"own": "max_grad_norm = 0.5"}):
        with pytest.raises(
            ConfigError, match=r"method mezo: max_grad_norm is 0\.5, but mezo does not use it: leave it out$"
        ):
            comparison(path, "mezo", **given)


def test_a_comparison_gives_steps_to_the_methods_that_make_some(tmp_path: Path) -> None:
    fedit, probe = comparison(tmp_path / "c.toml", "probe")
    assert (fedit.training.num_local_steps, probe.training.num_local_steps) == (7, 1)
