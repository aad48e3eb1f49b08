"""Device conformance: slice, train, evaluate and infer as PyTorch does, with the device's packages alone.

Runs wherever the device runs, emulated aarch64 included. Tolerances are for float32 in another order of summation.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Batch, Dataset, batches
from edge_runtime.engine.evaluator import EvaluationResult, Evaluator
from edge_runtime.engine.model import Mode
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.engine.training_state import History
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload
from edge_runtime.formats.plan import PackedPlan, Plan
from edge_runtime.inference import CompactModel
from edge_runtime.wire.work import HyperParameters

GRADIENT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-5
ADAPTER_TOLERANCE = 2e-5
IMPORTANCE_TOLERANCE = 1e-3
LOGITS_TOLERANCE = 1e-4


class Case:
    """One family's folder in one mode, with its sessions made once."""

    def __init__(self, directory: Path, mode: Mode) -> None:
        self.directory = directory
        expected = json.loads((directory / "expected.json").read_text())
        self.given = msgspec.convert(expected["hyper_parameters"], HyperParameters)
        self.arms: list[dict[str, Any]] = [{"name": name, **arm} for name, arm in expected["arms"].items()]
        self.artifact = Artifact.open(directory / "artifact")
        self.trainer = Trainer(self.artifact, num_threads=1, mode=mode)

    def plan(self, arm: dict[str, Any]) -> Plan:
        return read_plan(self.directory / arm["name"], self.artifact.manifest)

    def tensors(self, arm: dict[str, Any], name: str) -> dict[str, npt.NDArray[np.float32]]:
        return load_file(self.directory / arm["name"] / f"{name}.safetensors")

    def data(self, name: str) -> Dataset:
        return load_examples(self.directory / f"{name}.jsonl", self.artifact, self.given.max_length)


# pytest makes a parametrised fixture anew whenever the tests change from one parameter to another and back.
_case = functools.cache(Case)


@pytest.fixture(scope="module", params=["fused", "staged"])
def case(request: pytest.FixtureRequest, family_dir: Path) -> Case:
    return _case(family_dir, request.param)


@pytest.fixture
def arm(request: pytest.FixtureRequest, case: Case) -> dict[str, Any]:
    """See conftest.py."""
    arm: dict[str, Any] = case.arms[request.param]
    return arm


def test_slices_have_the_plans_sizes(case: Case, arm: dict[str, Any]) -> None:
    plan = case.plan(arm)
    weights = slice_weights(case.artifact, plan)
    for spec in case.artifact.manifest.tensors:
        shape = list(spec.shape)
        for prune in spec.prune:
            assert spec.layer is not None
            shape[prune.axis] = plan.kept(spec.layer, prune.group).size * prune.unit_size
        assert weights[spec.name].shape == tuple(shape)
        assert weights[spec.name].flags.c_contiguous


def test_the_base_is_stored_as_the_part_of_the_folder_says(case: Case, family_dir: Path) -> None:
    stored = {spec.dtype for spec in case.artifact.manifest.tensors if len(spec.shape) == 2}
    assert stored == {"int8" if family_dir.name.endswith("-int8") else "float32"}


def test_training_follows_pytorch(case: Case, arm: dict[str, Any]) -> None:
    run = case.trainer.start(case.plan(arm), arm["rank"], case.tensors(arm, "start"), case.given)
    gradients: list[dict[str, npt.NDArray[np.float32]]] = []
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step == 1:
            gradients.append(run.gradient())

    drawn = batches(case.data("train"), case.given.batch_size, np.random.default_rng(case.given.seed))
    train(run, drawn, case.given, on_step)

    expected = case.tensors(arm, "gradients")
    assert set(gradients[0]) == set(expected)
    for name, value in expected.items():
        difference = np.linalg.norm(gradients[0][name] - value) / np.linalg.norm(value)
        assert difference <= GRADIENT_TOLERANCE, name
    assert losses == pytest.approx(arm["losses"], rel=LOSS_TOLERANCE)
    adapter = run.adapter()
    for name, value in case.tensors(arm, "trained").items():
        np.testing.assert_allclose(adapter[name], value, rtol=0, atol=ADAPTER_TOLERANCE, err_msg=name)


def test_a_cut_in_training_changes_no_bit(case: Case) -> None:
    """A checkpoint after the second step, taken up by another run: the losses and the adapter of the first."""
    arm, kept = case.arms[0], b""
    given = msgspec.structs.replace(case.given, num_local_steps=4)
    history = History()

    def start() -> TrainingRun:
        return case.trainer.start(case.plan(arm), arm["rank"], case.tensors(arm, "start"), given)

    def draw(num_steps: int) -> Iterator[Batch]:
        drawn = batches(case.data("train"), given.batch_size, np.random.default_rng(given.seed))
        return islice(drawn, num_steps * given.num_accumulation_steps, None)

    def on_step(step: int, _loss: float) -> None:
        nonlocal kept
        if step == 2:
            made = Checkpoint(identity="", state=run.state(), history=history, before=None, before_s=0.0, paused_s=0.0)
            kept = b"".join(bytes(part) for part in encode_checkpoint(made))

    run = start()
    train(run, draw(0), given, on_step, history=history)
    checkpoint, again = decode_checkpoint(kept), start()
    again.restore(checkpoint.state)
    train(again, draw(2), given, history=checkpoint.history)
    assert len(history.losses) == given.num_local_steps
    assert checkpoint.history.losses == history.losses
    for name, value in run.adapter().items():
        np.testing.assert_array_equal(again.adapter()[name], value)


@pytest.mark.parametrize(("when", "tensors"), [("before", "start"), ("after", "trained")])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_evaluation_says_what_pytorch_says(
    case: Case, arm: dict[str, Any], when: str, tensors: str, batch_size: int
) -> None:
    evaluator = Evaluator.load(case.artifact, case.plan(arm), num_threads=1, mode=case.trainer.mode)
    adapter = case.tensors(arm, tensors)
    result = evaluator.evaluate(adapter, arm["rank"], case.given.lora_scaling, case.data("test"), batch_size)
    assert_same(result, arm[when])


def test_evaluator_shares_the_runs_weights(case: Case, arm: dict[str, Any]) -> None:
    run = case.trainer.start(case.plan(arm), arm["rank"], case.tensors(arm, "trained"), case.given)
    evaluator = run.evaluator()
    result = evaluator.evaluate(run.adapter(), arm["rank"], case.given.lora_scaling, case.data("test"), 3)
    assert_same(result, arm["after"])


def test_a_run_that_shrinks_on_its_way_follows_pytorch(case: Case, family_dir: Path) -> None:
    """Merged factors in the base, units scored, and a pruning in the middle that keeps the optimizer's state."""
    folder = family_dir / "shrinking"
    expected = json.loads((folder / "expected.json").read_text())
    start = decode_payload((folder / "start.safetensors").read_bytes())
    update = decode_payload((folder / "update.safetensors").read_bytes())
    plan = read_plan(folder, case.artifact.manifest)
    given = msgspec.structs.replace(case.given, importance_every_steps=expected["scored_every"])
    run = case.trainer.start(Plan.full(case.artifact.manifest), expected["rank"], start.adapter, given, start.merged)
    losses: list[float] = []
    drawn = batches(case.data("train"), given.batch_size, np.random.default_rng(given.seed))
    train(run, drawn, given, lambda _, loss: losses.append(loss), prunings={expected["shrinks_at"]: plan})

    assert losses == pytest.approx(expected["losses"], rel=LOSS_TOLERANCE)
    made = Payload(adapter=run.adapter(), importance=run.importance())
    check_payload(case.artifact.manifest, plan, expected["rank"], made, is_update=True)
    for name, value in update.adapter.items():
        np.testing.assert_allclose(made.adapter[name], value, rtol=0, atol=ADAPTER_TOLERANCE, err_msg=name)
    for key, scores in update.importance.items():
        np.testing.assert_allclose(made.importance[key], scores, rtol=IMPORTANCE_TOLERANCE, err_msg=str(key))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_compact_model_infers_as_pytorch(conformance: Path, family: str) -> None:
    expected = load_file(conformance / family / "infer.safetensors")
    model = CompactModel.open(conformance / family / "compact", num_threads=1)
    logits = model.logits(expected["input_ids"], expected["attention_mask"])
    if logits.ndim == 3:  # what stands at padding is of no use to anyone
        seen = expected["attention_mask"] == 1
        np.testing.assert_allclose(logits[seen], expected["logits"][seen], rtol=0, atol=LOGITS_TOLERANCE)
    else:
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=LOGITS_TOLERANCE)


def test_compact_model_generates_pytorchs_tokens(conformance: Path) -> None:
    expected = load_file(conformance / "llama" / "infer.safetensors")
    model = CompactModel.open(conformance / "llama" / "compact", num_threads=1)
    tokens = expected["generated"].tolist()
    generated = list(model.generate_ids(expected["input_ids"][0].tolist(), max_new_tokens=len(tokens)))
    assert generated == tokens[: len(generated)]
    assert len(generated) == len(tokens) or tokens[len(generated)] == model.info.text.eos_token_id


def read_plan(folder: Path, manifest: Manifest) -> Plan:
    packed = msgspec.msgpack.decode((folder / "plan.msgpack").read_bytes(), type=PackedPlan)
    return packed.open(manifest)


def assert_same(result: EvaluationResult, expected: dict[str, float]) -> None:
    assert result.num_targets == expected["num_targets"]
    assert result.num_correct == expected["num_correct"]
    assert result.loss_sum == pytest.approx(expected["loss_sum"], rel=LOSS_TOLERANCE)
