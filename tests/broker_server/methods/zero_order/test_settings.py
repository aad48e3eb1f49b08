"""Presets of zero-order tuning, and what is refused with the option's name: by a run, and by a coordinator's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from broker_server.errors import ConfigError
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.by_name import check_method
from broker_server.methods.presets import PRESETS
from broker_server.options import flat
from edge_runtime.errors import FedSpineError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.arms import ArmError
from edge_runtime.wire.work import Arm
from tests.broker_server import fleet, tiny

METHODS = ("mezo", "decomfl", "fedspzo", "topzo")
GIVEN = {"model": "m", "task": "text-classification", "data": "d.jsonl"}


def settings(method: str, given: Mapping[str, object] | None = None) -> RunSettings:
    return resolve({**GIVEN, "method": method, **(given or {})})


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_is_one_arm_at_a_constant_rate_in_time_as_it_is(method: str) -> None:
    made = settings(method)
    assert PRESETS[method].work == "zero_order"
    assert made.arms == (Arm(pruning_ratio=0.0, rank=8),)
    assert {made.learning_rate_at(number) for number in range(1, 11)} == {made.training.learning_rate}
    assert (made.emulate, made.pruning.deploy_rounds, made.sparsity) == ("none", 0, 0.0)
    check_method(method, flat(made), tiny.manifest(has_bias=True))


def test_presets_differ_in_what_they_perturb() -> None:
    parts = {m: (made.cut, made.num_outer, made.num_inner) for m in METHODS for made in [settings(m).zero_order]}
    assert parts == {"mezo": (0, 1, 1), "decomfl": (0, 4, 1), "fedspzo": (-1, 1, 4), "topzo": (-1, 1, 4)}
    assert settings("topzo").zero_order.lower_learning_rate == 0
    assert settings("fedspzo").zero_order.lower_learning_rate == -1


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"zo_outer": 0}, "--zo-outer is 0, expected a whole number from 1"),
        ({"zo_inner": 0}, "--zo-inner is 0, expected a whole number from 1"),
        ({"zo_noise": "uniform"}, "--zo-noise is 'uniform', expected"),
        ({"zo_epsilon": 1e-8}, "--zo-epsilon is 1e-08, expected a finite number from 1e-06 to 1"),
        ({"zo_lower_learning_rate": -0.5}, "--zo-lower-learning-rate is -0.5, expected -1, or 0 or more"),
        ({"arms": "0.25:8"}, "--arms: arm '0.25:8' is not RANK"),
        ({"arms": "8,4"}, "--arms is '8,4', but zero-order tuning takes one rank for all devices"),
        ({"zo_inner": 1, "zo_normalise": True}, "--zo-normalise divides by the standard deviation of a step's scalars"),
        ({"weight_decay": 0.1}, "--weight-decay is 0.1, but fedspzo does not use it: leave it out"),
        ({"accumulation_steps": 2}, "--accumulation-steps is 2, but fedspzo does not use it: leave it out"),
        ({"emulate": "jetson"}, "--emulate is jetson, but step times are those of first-order training"),
        ({"importance": "lora"}, "--importance is lora, but fedspzo does not use it: leave it out"),
        ({"deploy_rounds": 1}, "--deploy-rounds is 1, but fedspzo does not use it: leave it out"),
        ({"zo_move_cut": True, "zo_inner": 1}, "--zo-move-cut goes by what the scalars say of either part, which"),
        ({"zo_move_cut": True, "zo_inner": 129}, "--zo-move-cut goes by what the scalars say of either part, which"),
        ({"zo_move_cut": True, "zo_lower_learning_rate": 0.0}, "--zo-move-cut goes by what the scalars say of either"),
        ({"zo_move_cut": True, "zo_normalise": True}, "--zo-move-cut goes by what the scalars say of either part,"),
        (
            {"local_steps": 100, "zo_inner": 200},
            "--local-steps 100, --zo-outer 1 and --zo-inner 200 give 20000 scalars",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_option(given: dict[str, object], line: str) -> None:
    with pytest.raises(FedSpineError) as caught:
        settings("fedspzo", given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "changes", "line"),
    [
        ({"zo_cut": 3}, {}, "--zo-cut is 3: the cut is 3, expected 0 to 2, the number of blocks"),
        ({}, {"dense": ()}, "--zo-head is probe, but a classifier with one weight and one bias is needed"),
        ({"zo_cut": 2, "zo_move_cut": True}, {}, "--zo-cut is 2: with --zo-move-cut it is 1 to 1, so that something"),
        (
            {"zo_move_cut": True},
            {"targets": tiny.manifest().targets[-2:], "dense": ()},
            "--zo-cut is -1: the model has no two blocks with factors for --zo-move-cut",
        ),
        ({"zo_cut": 2}, {"dense": ()}, "--zo-cut is 2: nothing above a cut of 2 is tuned"),
        ({"update_transforms": "noise:1"}, {}, "--update-transforms do not apply to the sums of --zo-head probe"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_once_that_is_known(
    given: dict[str, object], changes: dict[str, object], line: str
) -> None:
    manifest: Manifest = msgspec.structs.replace(tiny.manifest(has_bias=True), **changes)
    made = settings("fedspzo", given)
    with pytest.raises(ConfigError) as caught:
        check_method("fedspzo", flat(made), manifest)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_language_models_have_no_such_head_and_need_none() -> None:
    manifest = msgspec.structs.replace(tiny.manifest(), task="causal-lm", dense=())
    check_method("fedspzo", flat(settings("fedspzo")), manifest)


def test_a_file_of_a_coordinator_is_told_of_its_key(tmp_path: Path) -> None:
    config = fleet.config(tmp_path, "mqtt://127.0.0.1:1")
    text = config.to_toml().replace('method = ""', 'method = "fedspzo"')
    with pytest.raises(ArmError, match=r"^arms: arm '0.0:3' is not RANK"):
        type(config).from_toml(text)
