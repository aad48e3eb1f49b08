"""Gradients and counts of the exported graphs are PyTorch's, on the same physically pruned model, for every arm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Task
from exporter.artifact.export import export_model
from models.errors import ModelUnsupportedError
from tests.conftest import save_bert, save_llama
from tests.exporter.reference import (
    LABELS,
    Arm,
    Arrays,
    TorchReference,
    arms,
    graph_gradients,
    graph_inputs,
    manifest_of,
    random_adapter,
    random_batch,
    relative_error,
    session,
    training_inputs,
)

TOLERANCE = 1e-5
ARMS = ["0.0:8", "0.25:4", "0.5:3", "0.75:1", "uneven:5", "first layer of one head and one channel:2"]
FAMILIES = ["bert", "llama"]


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Hugging Face directory and artifact of a tiny model."""
    model: Path = request.getfixturevalue(f"tiny_{request.param}_model")
    artifact: Path = request.getfixturevalue(f"tiny_{request.param}_artifact")
    return model, artifact


def assert_gradients_agree(
    model: Path, artifact: Path, arm: Arm, batch: int, length: int, tolerance: float = TOLERANCE
) -> Arrays:
    manifest = manifest_of(artifact)
    adapter = random_adapter(manifest, arm)
    data = random_batch(manifest, batch, length)

    loss, gradients = graph_gradients(artifact, arm, adapter, data)

    expected_loss, expected = TorchReference(model, manifest, arm, adapter).gradients(data)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert list(gradients) == list(expected)
    errors = {name: relative_error(gradients[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, max(errors, key=lambda name: errors[name])
    return expected


@pytest.mark.parametrize("name", ARMS)
def test_gradients_are_those_of_pytorch(case: tuple[Path, Path], name: str) -> None:
    model, artifact = case
    expected = assert_gradients_agree(model, artifact, arms(manifest_of(artifact))[name], batch=4, length=13)
    assert all(np.abs(value).max() > 0 for value in expected.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_top_block_alone(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Path = request.getfixturevalue(f"tiny_{family}_model")
    task: Task = "text-classification" if family == "bert" else "causal-lm"
    labels = ["red", "green", "blue"] if family == "bert" else None
    manifest, _ = export_model(model, task, tmp_path / "artifact", labels=labels, top_blocks=1)
    assert {target.layer for target in manifest.targets} == {manifest.num_layers - 1}
    graph = onnx.load(tmp_path / "artifact" / names.TRAINING_GRAPH).graph
    backward = {node.name.split("/")[0] for node in graph.node if ".backward/" in node.name}
    assert backward == {f"block{manifest.num_layers - 1}.backward"}

    assert_gradients_agree(model, tmp_path / "artifact", arms(manifest)["uneven:5"], batch=4, length=13)


def test_more_blocks_than_there_are_cannot_be_tuned(tiny_llama_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupportedError, match="--top-blocks is 3, expected 1 to 2"):
        export_model(tiny_llama_model, "causal-lm", tmp_path / "artifact", top_blocks=3)


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 9), (5, 2)])
def test_sizes_of_one_are_no_special_case(case: tuple[Path, Path], batch: int, length: int) -> None:
    """Tracing assumes sizes of two or more; the graph must not. (One product instead of a sum: terms may cancel.)"""
    model, artifact = case
    arm = arms(manifest_of(artifact))["first layer of one head and one channel:2"]
    assert_gradients_agree(model, artifact, Arm(plan=arm.plan, rank=1, scaling=1.0), batch, length, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 8}),
        ("llama", {"num_attention_heads": 4, "head_dim": 16}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {}),
    ],
    ids=["untied", "biases", "no grouping", "wide heads", "scaled positions", "mistral", "qwen2"],
)
def test_variants_of_llama(model_type: str, changes: dict[str, object], tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", model_type, **changes)
    manifest, _ = export_model(model, "causal-lm", tmp_path / "artifact")
    assert_gradients_agree(model, tmp_path / "artifact", arms(manifest)["uneven:5"], batch=3, length=10)


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("bert", ["query", "value"], ["attention.self.query", "attention.self.value"]),
        ("bert", ["output.dense"], ["attention.output.dense", "output.dense"]),
        ("llama", ["mlp.down_proj"], ["mlp.down_proj"]),
    ],
)
def test_only_some_linear_layers_are_targets(
    family: str, targets: list[str], expected: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(f"tiny_{family}_model")
    task: Task = "text-classification" if family == "bert" else "causal-lm"
    labels = 2 if family == "bert" else None
    manifest, _ = export_model(model, task, tmp_path / "artifact", num_labels=labels, targets=targets)
    assert [t.module for t in manifest.targets] == [p + module for p in manifest.block_prefixes for module in expected]
    assert_gradients_agree(model, tmp_path / "artifact", arms(manifest)["uneven:5"], batch=3, length=10)


def test_a_target_that_is_no_linear_layer_is_refused(tiny_bert_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupportedError, match=r"'q_proj', which is not a linear layer .* attention\.self\.query"):
        export_model(tiny_bert_model, "text-classification", tmp_path / "a", num_labels=2, targets=["q_proj"])
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_activations_of_bert(activation: str, tmp_path: Path) -> None:
    model = save_bert(tmp_path / "model", hidden_act=activation)
    manifest, _ = export_model(model, "text-classification", tmp_path / "artifact", num_labels=2)
    assert_gradients_agree(model, tmp_path / "artifact", arms(manifest)["uneven:5"], batch=3, length=10)


def test_gradients_are_added_to_what_was_accumulated(case: tuple[Path, Path]) -> None:
    _, artifact = case
    manifest = manifest_of(artifact)
    arm = arms(manifest)["0.5:3"]
    adapter, data = random_adapter(manifest, arm), random_batch(manifest, 2, 6)
    layout = AdapterLayout.of(manifest, arm.plan, arm.rank)
    before = np.random.default_rng(0).normal(size=layout.num_elements).astype(np.float32)

    _, gradients = graph_gradients(artifact, arm, adapter, data)
    feeds = training_inputs(artifact, arm, adapter, data, before)
    (after,) = session(artifact / names.TRAINING_GRAPH).run([names.GRAD_ACCUM_OUT], feeds)

    np.testing.assert_allclose(after, before + layout.flatten(gradients), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["0.0:8", "uneven:5"])
def test_evaluation_counts_what_pytorch_counts(case: tuple[Path, Path], name: str) -> None:
    model, artifact = case
    manifest = manifest_of(artifact)
    arm = arms(manifest)[name]
    adapter, data = random_adapter(manifest, arm), random_batch(manifest, 6, 12)

    graph = session(artifact / names.EVALUATION_GRAPH)
    outputs = [output.name for output in graph.get_outputs()]
    got = dict(zip(outputs, graph.run(outputs, graph_inputs(artifact, arm, adapter, data)), strict=True))

    with torch.no_grad():
        logits = TorchReference(model, manifest, arm, adapter).logits(data)
    rows, targets = logits, torch.from_numpy(data[LABELS])
    if manifest.task == "causal-lm":
        rows, targets = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    else:
        np.testing.assert_allclose(got[names.LOGITS], logits, rtol=1e-4, atol=1e-5)
    valid = targets != names.IGNORE_LABEL
    loss_sum = torch.nn.functional.cross_entropy(rows, targets, reduction="sum", ignore_index=names.IGNORE_LABEL)
    assert got[names.LOSS_SUM] == pytest.approx(loss_sum.item(), rel=1e-5)
    assert got[names.NUM_CORRECT] == ((rows.argmax(-1) == targets) & valid).sum().item()
    assert valid.any()
    assert set(outputs) == set(got)


@pytest.mark.slow
def test_gradients_of_a_real_encoder(shared: Path, tmp_path: Path) -> None:
    """MiniLM: 6 layers, 12 heads, 1536 channels."""
    model, artifact = shared / "models" / "minilm-l6", tmp_path / "artifact"
    manifest, _ = export_model(model, "text-classification", artifact, num_labels=4)
    for name in ("0.25:4", "uneven:5"):
        assert_gradients_agree(model, artifact, arms(manifest)[name], batch=2, length=16)
