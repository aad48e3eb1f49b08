"""Settings of a benchmark are checked before anything runs, and become the same request for all."""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from broker_server.benchmark.contenders import contenders_of
from broker_server.benchmark.settings import LOSS_STEPS, NUM_WARMUP_STEPS, check_json, parse_arm
from broker_server.errors import ConfigError, MissingExtraError
from edge_runtime.wire.arms import ArmError
from edge_runtime.wire.work import Arm
from tests.broker_server.benchmark.samples import SETTINGS, settings

HALF = Arm(pruning_ratio=0.5, rank=8)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "chess"}, "task is 'chess'"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"length": 1}, "length is 1"),
        ({"runs": 0}, "runs is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"base": "int4"}, "base is 'int4'"),
        ({"num_labels": 1}, "--num-labels is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"model": ""}, "model is ''"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        settings(**changes)


@pytest.mark.parametrize("text", ["", "8", "0.5", "1.0:8", "0.5:0", "0.5:8,0.0:8", "a:b"])
def test_anything_but_one_arm_is_refused(text: str) -> None:
    with pytest.raises(ArmError):
        parse_arm(text)


def test_an_arm_is_ratio_and_rank() -> None:
    assert parse_arm("0.5:8") == HALF


def test_a_file_that_could_not_be_written_is_refused(tmp_path: Path) -> None:
    check_json(tmp_path / "new.json")
    check_json(Path("new.json"))
    with pytest.raises(ConfigError, match="is a directory"):
        check_json(tmp_path)
    with pytest.raises(ConfigError, match="has no folder"):
        check_json(tmp_path / "none" / "new.json")


def test_the_first_run_goes_on_until_losses_are_compared() -> None:
    first, second = (SETTINGS.request("fused", HALF, Path("a"), Path("m"), run) for run in (0, 1))
    assert first.hyper_parameters.num_local_steps == LOSS_STEPS + 1
    assert second.hyper_parameters.num_local_steps == NUM_WARMUP_STEPS + SETTINGS.steps
    many = settings(steps=200).request("fused", HALF, Path("a"), Path("m"), 0)
    assert many.hyper_parameters.num_local_steps == NUM_WARMUP_STEPS + 200


def test_a_request_carries_what_was_asked_for() -> None:
    request = SETTINGS.request("staged", HALF, Path("a"), Path("m"), 1)
    assert (request.engine, request.arm, request.model, request.num_threads) == ("staged", HALF, "somewhere/tiny", 1)
    hyper = request.hyper_parameters
    assert (hyper.batch_size, hyper.max_length, hyper.seed, hyper.max_grad_norm) == (2, 10, 0, 1.0)


def test_both_modes_take_part_and_every_peer_once() -> None:
    found = contenders_of(settings(against=("torch", "torch")))
    assert [contender.name for contender in found] == ["fused", "staged", "torch"]
    assert [contender.reference for contender in found] == [None, "fused", "fused"]
    assert contenders_of(settings(against=()))[:] == found[:2]


def test_beside_a_pruned_arm_the_whole_model_is_run_for_peers_that_prune_nothing() -> None:
    found = {contender.name: contender for contender in contenders_of(settings(arm=HALF))}
    assert list(found) == ["fused", "staged", "fused-unpruned", "staged-unpruned", "torch"]
    assert {name for name, contender in found.items() if contender.arm == HALF} == {"fused", "staged"}
    assert found["torch"].reference == found["staged-unpruned"].reference == "fused-unpruned"
    assert [contender.name for contender in contenders_of(settings(arm=HALF, against=()))] == ["fused", "staged"]


@pytest.mark.parametrize(("base", "reference"), [("float32", "fused"), ("float16", None), ("nf4", None)])
def test_a_peer_with_other_weights_has_no_reference(base: str, reference: str | None) -> None:
    *_, torch = contenders_of(settings(base=base))
    assert (torch.base, torch.reference) == ("float32", reference)


def test_a_peer_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="--against names 'tensorflow', which is not known; known: torch, ort-training"
    ):
        contenders_of(settings(against=("torch", "tensorflow")))


def test_a_peer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(MissingExtraError, match=r"needs the package 'peft': install the server, pip install"):
        contenders_of(SETTINGS)


def test_onnxruntime_training_needs_its_environment() -> None:
    with pytest.raises(
        MissingExtraError, match=r"none/bin/python is not a program: run scripts/setup-ort-training, or"
    ):
        contenders_of(settings(against=("ort-training",)))


def test_onnxruntime_training_trains_the_arm_itself() -> None:
    given = settings(against=("ort-training",), arm=HALF, base="nf4", ort_python=sys.executable)
    found = contenders_of(given)
    assert [contender.name for contender in found] == ["fused", "staged", "ort-training"]
    assert (found[-1].arm, found[-1].reference, found[-1].needs_ort_models) == (HALF, "fused", True)
    assert found[-1].command[0] == sys.executable


def test_every_setting_is_checked() -> None:
    """A field without a range or a closed set of values would pass anything on."""
    free = {"targets", "against", "arm", "task", "base"}  # the export, the peers, the arm's own range, closed sets
    for name, kind in typing.get_type_hints(type(SETTINGS), include_extras=True).items():
        assert name in free or "Annotated" in str(kind), name
