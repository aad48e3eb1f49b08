"""A comparison's file: presets, own methods, scenarios, the quick form, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker_server.errors import ConfigError
from broker_server.experiments.compare.config import Comparison, RunKey
from broker_server.experiments.run.resolve import resolve
from broker_server.methods.aggregation import make_aggregation
from broker_server.methods.presets import PRESETS, Shared
from broker_server.methods.scheduler import SCHEDULERS
from broker_server.options import flat
from edge_runtime.wire.arms import LORA_AXES, ArmError
from tests.broker_server.experiments.compare.samples import comparison
from tests.broker_server.other_axes import ONE_ARM, THREE_AXES

SHARED = Shared(rounds=20, sparsity=0.5, arms=LORA_AXES.parse("0.0:4,0.0:16,0.25:8,0.5:16"))
BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks" / "compare"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_configuration_of_the_same_system(name: str) -> None:
    settings = resolve({"method": name, **PRESETS[name].settings(SHARED)})

    assert settings.scheduler in SCHEDULERS
    make_aggregation(settings.aggregation)


@pytest.mark.parametrize("name", ["fedit", "hetlora", "fedara", "ffa_lora", "flexlora", "flora", "fedex_lora"])
def test_baselines_that_do_not_prune_play_only_the_ratio_zero(name: str) -> None:
    arms = LORA_AXES.parse(str(PRESETS[name].settings(SHARED)["arms"]))

    assert {arm.pruning_ratio for arm in arms} == {0.0}
    assert max(arm.rank for arm in arms) == 16


@pytest.mark.parametrize("name", ["one_shot", "loraprune"])
def test_baselines_of_a_fixed_ratio_play_the_wanted_sparsity(name: str) -> None:
    assert PRESETS[name].settings(SHARED)["arms"] == "0.5:16"


@pytest.mark.parametrize(
    ("run", "aggregation"),
    [
        ({"model": "m", "task": "text-classification", "data": "d.jsonl"}, "fedspine"),
        ({"model": "m", "task": "text-classification", "data": "d.jsonl", "class_balance": 0.5}, "fedspine_holders"),
        ({"task": "causal-lm"}, "fedspine_holders"),
    ],
)
def test_fedspine_divides_by_holders_unless_classes_may_be_skewed(run: dict[str, object], aggregation: str) -> None:
    both = comparison(run=run)

    assert both.settings(RunKey(method="fedspine", seed=0)).aggregation == aggregation
    assert both.settings(RunKey(method="fedit", seed=0)).aggregation == "fedit"


def test_an_artifact_that_runs_share_is_exported_and_checked_with_the_same_options() -> None:
    run = {"model": "m", "task": "text-classification", "data": "d.jsonl"}
    shared = comparison(run={**run, "base": "int8", "targets": "query, value", "top_blocks": 2})
    settings = shared.settings(RunKey(method="fedit", seed=1), artifact=Path("a"))

    assert (settings.base, settings.target_names, settings.top_blocks) == ("int8", ("query", "value"), 2)


@pytest.mark.parametrize("setting", [{"base": "int8"}, {"targets": "query"}, {"top_blocks": 1}])
def test_a_method_cannot_change_what_is_exported(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        comparison(methods=["mine"], method={"mine": {"preset": "fedit", **setting}})


def test_a_run_s_settings_are_the_shared_ones_under_the_method_s_and_its_seed() -> None:
    settings = comparison().settings(RunKey(method="fedit", seed=1), artifact=Path("a"), calibration=Path("c.json"))

    assert (settings.training.num_rounds, settings.seed, settings.arms) == (4, 1, LORA_AXES.parse("0.0:8"))
    assert (settings.aggregation, settings.scheduler) == ("fedit", "fixed")
    assert (settings.artifact, settings.calibration, settings.compact) == ("a", "c.json", False)


def test_runs_go_seed_by_seed() -> None:
    keys = [(key.method, key.seed) for key in comparison().run_keys]

    assert keys == [("fedspine", 0), ("fedit", 0), ("fedspine", 1), ("fedit", 1)]


def test_an_own_method_starts_from_a_preset() -> None:
    method = {"big": {"preset": "fedit", "label": "FedIT, large steps", "learning_rate": 0.1}}

    own = comparison(methods=["big", "fedit"], method=method).method("big")

    assert own.label == "FedIT, large steps"
    assert own.settings["learning_rate"] == 0.1
    assert own.settings["aggregation"] == "fedit"


def test_a_table_of_a_preset_s_name_changes_the_preset() -> None:
    changed = comparison(method={"fedspine": {"ramp_rounds": 1}}).method("fedspine")

    assert changed.settings["ramp_rounds"] == 1
    assert changed.settings["scheduler"] == "fedspine"
    assert changed.label == "FedSpine"


def test_a_method_may_play_more_rounds_and_its_preset_s_shares_follow() -> None:
    long = comparison(methods=["fedspine", "long"], method={"long": {"preset": "fedspine", "rounds": 40}})
    key = next(key for key in long.run_keys if key.method == "long")

    assert long.settings(key).training.num_rounds == 40
    assert long.settings(key).pruning.deploy_rounds == 12
    assert long.method("fedspine").settings["deploy_rounds"] == 1  # of 4


def test_a_new_head_is_made_by_the_export_that_the_runs_share(tmp_path: Path) -> None:
    run = {"task": "text-classification", "model": "m", "data": "d.jsonl", "new_head": True}
    found = comparison(run=run)

    assert found.settings(found.run_keys[0]).new_head
    assert not found.settings(found.run_keys[0], artifact=tmp_path).new_head


def test_a_scenario_runs_methods_again_under_its_settings() -> None:
    found = comparison(scenario={"slow": {"methods": ["fedit"], "emulate": "slow.toml"}})

    assert [method.name for method in found.methods] == ["fedspine", "fedit", "fedit+slow"]
    again = found.method("fedit+slow")
    assert (again.base, again.scenario, again.settings["emulate"]) == ("fedit", "slow", "slow.toml")
    assert again.settings["aggregation"] == "fedit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["chess"]}, "method 'chess' is not known"),
        ({"methods": []}, "one method or more"),
        ({"seeds": []}, "one seed or more"),
        ({"reference": "flora"}, "reference 'flora' is not among the methods"),
        ({"method": {"fedit": {"local_steps": 2}}}, "setting 'local_steps' must be the same for all methods"),
        ({"method": {"fedit": {"rounds": 0}}}, "method fedit: rounds is 0"),
        ({"run": {"round_deadline": 0}}, r"\[run\] round_deadline is 0, expected"),
        ({"run": {"ruonds": 3}}, "key 'ruonds' is not known; did you mean 'rounds'"),
        ({"methods": ["fedti"]}, "method 'fedti' is not known; did you mean 'fedit'"),
        ({"method": {"fedspine": {"rounds": "many"}}}, "method fedspine: .*rounds"),
        ({"method": {"fedit": {"seed": 2}}}, "setting 'seed' must be the same"),
        ({"method": {"fedit": {"preset": "chess"}}}, "method fedit: preset: method 'chess' is not known"),
        ({"method": {"fedit": {"colour": "red"}}}, "method fedit: key 'colour' is not known"),
        ({"methods": ["../up"], "method": {"../up": {}}}, "method '../up' is not allowed"),
        ({"scenario": {"slow": {"methods": ["chess"]}}}, "method 'chess' is not known"),
        ({"scenario": {"slow": {"methods": "fedit"}}}, "methods must be a list"),
        ({"scenario": {"slow": {"seed": 1}}}, "setting 'seed' must be the same"),
        ({"run": {"seed": 1}}, "setting 'seed' is set for each run"),
        ({"run": {"rounds": 0}}, "rounds is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        comparison(**changes)


def test_an_arm_outside_its_range_keeps_its_own_error() -> None:
    with pytest.raises(ArmError, match="method fedit"):
        comparison(method={"fedit": {"arms": "0.99:8"}})


@pytest.mark.parametrize("text", ["", "title = 1", 'title = "x"\nmethods = ["fedit"]\ncolour = 1\n[run]\n', "\xff = "])
def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compare.toml"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError, match=r"compare\.toml"):
        Comparison.load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Comparison.load(tmp_path / "none.toml")


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_comparisons_of_the_project_are_well_formed(path: Path, quick: bool) -> None:  # noqa: FBT001 - a parameter
    found = Comparison.load(path, quick=quick)

    assert found.reference == "fedspine"
    assert {"fedspine", "fedit", "loraprune", "oracle"} <= {method.name for method in found.methods}
    if quick:
        assert len(found.seeds) == 1


@pytest.mark.parametrize("name", ["agnews", "sst2"])
def test_the_classification_comparisons_are_as_large_as_was_asked_for(name: str) -> None:
    found = Comparison.load(BENCHMARKS / f"{name}.toml")

    settings = found.settings(found.run_keys[0])
    assert len(found.seeds) >= 3
    assert settings.num_devices >= 10
    assert settings.split == "dirichlet:0.5"
    assert settings.sparsity == 0.5
    assert settings.is_emulated


def test_the_shared_grid_is_for_methods_of_its_axes_and_others_have_their_own() -> None:
    tables = {
        "wide": {"preset": THREE_AXES},
        "said": {"preset": THREE_AXES, "arms": "0.0:4:batch_size=2"},
        "one": {"preset": ONE_ARM},
    }
    mixed = comparison(methods=["fedspine", "fedit", *tables], method=tables)

    arms = {key.method: flat(mixed.settings(key))["arms"] for key in mixed.run_keys}

    assert arms == {
        "fedspine": "0.0:4,0.5:8",
        "fedit": "0.0:8",
        "wide": "0.0:8,0.5:4:batch_size=2",
        "said": "0.0:4:batch_size=2",
        "one": "",
    }


def test_arms_of_a_table_that_its_method_does_not_play_are_refused() -> None:
    with pytest.raises(ArmError, match=r"^method mine: arms: arm '0\.0:8' is not RATIO, such as 0\.25$"):
        comparison(methods=["mine"], method={"mine": {"preset": "probe", "arms": "0.0:8"}})
