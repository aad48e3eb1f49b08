"""PyTorch and PEFT in a benchmark make the steps that our engine makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from edge_runtime.benchmark import portable_contender as ours
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from exporter.artifact.export import export_model
from exporter.benchmark import torch_contender
from exporter.errors import ExportError
from tests.conftest import save_bert, save_bert_classifier
from tests.edge_runtime.benchmark.requests import request_for
from tests.exporter.reference import manifest_of


@pytest.fixture(autouse=True)
def as_loud_as_before() -> Iterator[None]:
    """The contender, which has a process of its own, quiets transformers."""
    before = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(before)
    transformers_logging.enable_progress_bar()


def assert_same_steps(model: Path, artifact: Path, num_steps: int = 30) -> None:
    request = request_for(artifact, model=str(model))
    theirs, mine = torch_contender.prepare(request), ours.prepare(request)
    expected = [mine.step() for _ in range(num_steps)]
    assert theirs.num_trainable == mine.num_trainable
    assert [theirs.step() for _ in range(num_steps)] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[-1]) > 1e-2  # so that agreeing means something


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_losses_are_those_of_the_fused_graph(family: str, request: pytest.FixtureRequest) -> None:
    assert_same_steps(
        request.getfixturevalue(f"tiny_{family}_model"), request.getfixturevalue(f"tiny_{family}_artifact")
    )


@pytest.mark.slow
def test_a_checkpoint_without_a_pooler_gets_the_artifacts(tmp_path: Path) -> None:
    """transformers makes a random one, and so does the export: it must be the same."""
    from safetensors.torch import load_file, save_file

    model = save_bert(tmp_path / "model")
    weights = {name: value for name, value in load_file(model / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    export_model(model, "text-classification", tmp_path / "artifact", num_labels=2, targets=["query", "value"])
    torch.manual_seed(5)
    assert_same_steps(model, tmp_path / "artifact")


@pytest.mark.slow
def test_a_checkpoint_with_a_classifier_and_dropout(tmp_path: Path) -> None:
    model = save_bert_classifier(tmp_path / "model", ("no", "yes"))
    export_model(model, "text-classification", tmp_path / "artifact")
    assert_same_steps(model, tmp_path / "artifact")


def test_a_pruned_arm_is_refused(tiny_bert_artifact: Path, tiny_bert_model: Path) -> None:
    request = request_for(tiny_bert_artifact, model=str(tiny_bert_model), pruning_ratio=0.5)
    with pytest.raises(ExportError, match=r"PEFT trains whole models, got pruning ratio 0\.5"):
        torch_contender.prepare(request)


def test_peft_has_every_trainable_tensor_under_the_name_that_is_looked_for(tiny_bert_artifact: Path) -> None:
    manifest = manifest_of(tiny_bert_artifact)
    names = {torch_contender.peft_parameter(name) for name in AdapterLayout.of(manifest, Plan.full(manifest), 2).shapes}
    prefix = "base_model.model."
    assert f"{prefix}bert.encoder.layer.1.attention.self.key.lora_B.default.weight" in names
    assert f"{prefix}classifier.modules_to_save.default.weight" in names
