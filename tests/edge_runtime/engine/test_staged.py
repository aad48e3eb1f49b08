"""Staged mode: the same gradients and scores as fused mode, whatever the batch and the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine import staged
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.model import Mode, Model
from edge_runtime.engine.modes import graphs_of
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest, Task
from edge_runtime.formats.plan import Plan
from exporter.artifact.export import export_model
from tests.conftest import save_bert, save_llama

Array = npt.NDArray[np.float32]

RANK, SCALING = 3, 1.5


@pytest.fixture(scope="module", params=["tiny_bert_artifact", "tiny_llama_artifact"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return Artifact.open(request.getfixturevalue(request.param))


def uneven(manifest: Manifest) -> Plan:
    """Every layer keeps another number of heads and channels."""
    kept = {
        (g.layer, g.group): np.arange(g.num_units - 1 - (g.layer + index) % (g.num_units - 1), g.num_units)
        for index, g in enumerate(manifest.groups)
    }
    return Plan.from_kept(manifest, kept)


def model_of(artifact: Artifact, plan: Plan, mode: Mode, weights: FrozenWeights | None = None) -> Model:
    layout = AdapterLayout.of(artifact.manifest, plan, RANK)
    return graphs_of(artifact, mode, num_threads=1).model(weights or slice_weights(artifact, plan), layout, SCALING)


def random_batch(manifest: Manifest, rows: int, length: int, rng: np.random.Generator) -> Batch:
    lengths = rng.integers(1, length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(4, manifest.text.vocab_size, (rows, length)), 0)
    labels = np.where(mask == 1, ids, names.IGNORE_LABEL)
    if manifest.task == "text-classification":
        labels = rng.integers(0, len(manifest.labels), rows)
    return Batch(input_ids=ids, attention_mask=mask, labels=labels)


def gradient_of(model: Model, batch: Batch, params: Array, grads: Array) -> tuple[float, Array]:
    summed = np.full_like(params, np.nan)
    return model.gradient(batch, params, grads, summed, batch.num_targets), summed


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 5), length=st.integers(1, 12), seed=st.integers(0, 99), pruned=st.booleans())
def test_modes_agree(artifact: Artifact, rows: int, length: int, seed: int, *, pruned: bool) -> None:
    assert_modes_agree(artifact, rows, length, seed, pruned=pruned)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_modes_agree_where_the_top_block_alone_is_tuned(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(f"tiny_{family}_model")
    labels = ["red", "green", "blue"] if family == "bert" else None
    task: Task = "text-classification" if family == "bert" else "causal-lm"
    export_model(model, task, tmp_path / "artifact", labels=labels, top_blocks=1)
    artifact = Artifact.open(tmp_path / "artifact")
    assert artifact.manifest.first_tuned == artifact.manifest.num_layers - 1 > 0
    for pruned in (False, True):
        assert_modes_agree(artifact, 3, 9, 0, pruned=pruned)


@pytest.mark.parametrize("top_blocks", [None, 2])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_modes_agree_where_there_are_blocks_between_the_first_and_the_last(
    family: str, top_blocks: int | None, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    save, labels = (save_bert, ["red", "green", "blue"]) if family == "bert" else (save_llama, None)
    task: Task = "text-classification" if family == "bert" else "causal-lm"
    save(tmp_path / "model", num_hidden_layers=4)
    export_model(tmp_path / "model", task, tmp_path / "artifact", labels=labels, top_blocks=top_blocks)
    artifact = Artifact.open(tmp_path / "artifact")
    kept = {"bert": range(2, 3) if top_blocks else range(3), "llama": range(0)}[family]
    assert list(artifact.manifest.residual_layers) == list(kept)
    for pruned in (False, True):
        assert_modes_agree(artifact, 3, 9, 0, pruned=pruned)


def test_where_a_norm_follows_the_sum_the_last_linear_layer_is_not_computed_again(tiny_bert_artifact: Path) -> None:
    def readers(stage: str, name: str) -> list[str]:
        graph = onnx.load(tiny_bert_artifact / stage).graph
        return [node.op_type for node in graph.node if name in node.input]

    assert readers(names.BLOCK_STAGE, "output.dense.bias") == ["Gemm"]
    for stage in (names.BLOCK_BACKWARD_STAGE, names.FIRST_BACKWARD_STAGE):
        assert readers(stage, names.RESIDUAL)
        assert not readers(stage, "output.dense.bias")
        assert readers(stage, "intermediate.dense.bias") == ["Gemm"]
    assert readers(names.LAST_BACKWARD_STAGE, "output.dense.bias") == ["Gemm"], "of first tokens alone: nothing is kept"


def assert_modes_agree(artifact: Artifact, rows: int, length: int, seed: int, *, pruned: bool) -> None:
    manifest, rng = artifact.manifest, np.random.default_rng(seed)
    plan = uneven(manifest) if pruned else Plan.full(manifest)
    size = AdapterLayout.of(manifest, plan, RANK).num_elements
    params, before = (rng.normal(0, 0.1, size).astype(np.float32) for _ in range(2))
    fused, of_stages = (model_of(artifact, plan, mode) for mode in ("fused", "staged"))
    for _ in range(2):  # memory of the first batch is used again
        batch = random_batch(manifest, rows, length, rng)
        expected, got = (gradient_of(model, batch, params, before) for model in (fused, of_stages))
        assert got[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)
        sums, correct = zip(*(model.score(batch, params) for model in (fused, of_stages)), strict=True)
        assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-6)
        assert correct[0] == correct[1]
        rows, length = max(1, rows - 1), length + 3


def test_matrices_kept_as_float16_are_converted_block_by_block(artifact: Artifact) -> None:
    manifest, rng = artifact.manifest, np.random.default_rng(1)
    plan = uneven(manifest)
    sliced = slice_weights(artifact, plan)
    half = FrozenWeights({n: v.astype(np.float16) if v.ndim > 1 else v for n, v in sliced.items()})
    rounded = FrozenWeights(dict(half))
    params = rng.normal(0, 0.1, AdapterLayout.of(manifest, plan, RANK).num_elements).astype(np.float32)
    fused, of_stages = model_of(artifact, plan, "fused", rounded), model_of(artifact, plan, "staged", half)
    for _ in range(2):
        batch = random_batch(manifest, 3, 8, rng)
        expected, got = (gradient_of(model, batch, params, params) for model in (fused, of_stages))
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)
        assert got[0] == pytest.approx(expected[0], rel=1e-5)
        assert of_stages.score(batch, params)[0] == pytest.approx(fused.score(batch, params)[0], rel=1e-5)


def test_what_is_kept_as_stored(make_artifact: Callable[..., Artifact]) -> None:
    artifact = make_artifact()
    kept = {"layer.0.norm", "layer.0.both"}
    weights = slice_weights(artifact, Plan.full(artifact.manifest), keep_stored=kept)
    for spec in artifact.manifest.tensors:
        held = weights.held(spec.name)
        assert isinstance(held, np.ndarray)
        assert held.dtype == (spec.dtype if spec.name in kept else "float32")
        assert weights[spec.name].dtype == np.float32


def test_what_each_mode_keeps_as_stored(tiny_bert_artifact: Path, tiny_llama_artifact: Path) -> None:
    for path, is_tied in ((tiny_bert_artifact, False), (tiny_llama_artifact, True)):
        artifact = Artifact.open(path)
        kept = graphs_of(artifact, "staged", num_threads=1).keeps_stored
        matrices = {t.name for t in artifact.manifest.tensors if t.layer is not None and len(t.shape) == 2}
        assert set(kept) == (matrices if is_tied else matrices | {artifact.manifest.word_embedding})
        looked_up = set() if is_tied else {artifact.manifest.word_embedding}
        assert set(graphs_of(artifact, "fused", num_threads=1).keeps_stored) == looked_up == artifact.manifest.looked_up


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_scores_may_be_computed_in_pieces(
    tiny_llama_artifact: Path, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    artifact, rng = Artifact.open(tiny_llama_artifact), np.random.default_rng(0)
    manifest, plan = artifact.manifest, Plan.full(artifact.manifest)
    params = rng.normal(0, 0.1, AdapterLayout.of(manifest, plan, RANK).num_elements).astype(np.float32)
    batch, model = random_batch(manifest, 3, 8, rng), model_of(artifact, plan, "staged")
    expected, whole = gradient_of(model, batch, params, np.zeros_like(params))
    scored = model.score(batch, params)

    monkeypatch.setattr(staged, "SCORE_BYTES", 4 * manifest.text.vocab_size * positions)

    loss, pieces = gradient_of(model, batch, params, np.zeros_like(params))
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-7)
    again = model.score(batch, params)
    assert again[0] == pytest.approx(scored[0], rel=1e-6)
    assert again[1] == scored[1]


def test_nothing_to_learn_leaves_the_sum_as_it_was(tiny_llama_artifact: Path) -> None:
    artifact, rng = Artifact.open(tiny_llama_artifact), np.random.default_rng(0)
    plan = Plan.full(artifact.manifest)
    params = rng.normal(0, 0.1, AdapterLayout.of(artifact.manifest, plan, RANK).num_elements).astype(np.float32)
    for mode in ("fused", "staged"):
        model = model_of(artifact, plan, mode)
        loss, summed = gradient_of(model, random_batch(artifact.manifest, 3, 1, rng), params, params)
        assert loss == 0.0
        np.testing.assert_array_equal(summed, params)
        assert model.score(random_batch(artifact.manifest, 2, 1, rng), params) == (0.0, 0)
