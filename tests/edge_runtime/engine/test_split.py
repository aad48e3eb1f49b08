"""A model in two parts: lower blocks once, upper ones for any number of adapters, bit for bit what the whole gives."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.session import Graph
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest, Task
from edge_runtime.formats.plan import Plan
from exporter.artifact.export import export_model
from tests.conftest import save_bert, save_llama

Array = npt.NDArray[np.float32]
NUM_LAYERS, RANK = 4, 2
KINDS: dict[str, dict[str, Any]] = {
    "encoder, norms after the sums": {},
    "encoder, top blocks tuned": {"top_blocks": 2},
    "encoder, int8": {"base_dtype": "int8"},
    "decoder": {"family": "llama"},
    "decoder, nf4": {"family": "llama", "base_dtype": "nf4", "hidden_size": 64, "intermediate_size": 128},
}


@pytest.fixture(scope="module", params=KINDS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, kind = tmp_path_factory.mktemp("split"), dict(KINDS[request.param])
    is_decoder = kind.pop("family", "bert") == "llama"
    options = {name: kind.pop(name) for name in ("top_blocks", "base_dtype") if name in kind}
    save: Callable[..., Path] = save_llama if is_decoder else save_bert
    task: Task = "causal-lm" if is_decoder else "text-classification"
    labels = None if is_decoder else ["red", "green", "blue"]
    (folder / "model").mkdir()
    export_model(
        save(folder / "model", num_hidden_layers=NUM_LAYERS, **kind), task, folder / "made", labels=labels, **options
    )
    return Artifact.open(folder / "made")


def model_of(artifact: Artifact, graphs: StagedGraphs | None = None) -> StagedModel:
    graphs = graphs or StagedGraphs(artifact, num_threads=1)
    plan = Plan.full(artifact.manifest)
    weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
    return graphs.model(weights, AdapterLayout.of(artifact.manifest, plan, RANK), 1.5)


def batch_of(manifest: Manifest, rows: int, length: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(2, length + 1, (rows, 1))).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(4, manifest.text.vocab_size, (rows, length)), 0)
    labels = np.where(mask == 1, ids, names.IGNORE_LABEL)
    if manifest.task == "text-classification":
        labels = rng.integers(0, len(manifest.labels), rows)
    return Batch(input_ids=ids, attention_mask=mask, labels=labels)


def adapter_of(artifact: Artifact, seed: int) -> Array:
    size = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK).num_elements
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


@pytest.mark.parametrize("cut", range(NUM_LAYERS + 1))
def test_both_parts_give_what_the_whole_gives(artifact: Artifact, cut: int) -> None:
    whole, split, params = model_of(artifact), model_of(artifact), adapter_of(artifact, 0)
    for seed, (rows, length) in enumerate([(3, 9), (2, 12), (1, 5)]):
        batch = batch_of(artifact.manifest, rows, length, seed)
        expected = whole.score(batch, params)
        assert expected[0] > 0
        lowered = split.lower(batch, params, cut)
        assert split.upper(lowered, batch, params, cut) == expected
        assert split.score(batch, params) == expected


@pytest.mark.parametrize("cut", range(NUM_LAYERS + 1))
def test_what_came_out_below_serves_any_number_of_adapters(artifact: Artifact, cut: int) -> None:
    """Of two batches and two adapters below, each for three adapters above, in an order that mixes all of them."""
    model, whole = model_of(artifact), model_of(artifact)
    layout = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK)
    parts = layout.parts(artifact.manifest)
    above = slice(parts.blocks[cut].start if cut < NUM_LAYERS else parts.dense.start, None)
    batches = [batch_of(artifact.manifest, 3, 9, 1), batch_of(artifact.manifest, 2, 7, 2)]
    below = [adapter_of(artifact, seed) for seed in (0, 1)]
    lowered = {
        (turn, number): model.lower(batch, params, cut)
        for (turn, batch), (number, params) in itertools.product(enumerate(batches), enumerate(below))
    }
    before = {key: value.hidden.copy() for key, value in lowered.items()}
    for seed, (turn, number) in itertools.product((5, 6, 7), lowered):
        params = below[number].copy()
        params[above] = adapter_of(artifact, seed)[above]
        other = np.full_like(params, np.nan)  # below the cut nothing is read
        other[above] = params[above]
        found = model.upper(lowered[turn, number], batches[turn], other, cut)
        assert found == whole.score(batches[turn], params)
    for key, value in lowered.items():
        np.testing.assert_array_equal(value.hidden, before[key])


@pytest.mark.parametrize("cut", range(NUM_LAYERS + 1))
def test_adapters_that_pass_block_by_block_give_what_each_gives(artifact: Artifact, cut: int) -> None:
    """In memory for one adapter, written block by block; also after a batch of another size."""
    model, alone = model_of(artifact), model_of(artifact)
    layout = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK)
    for seed, (rows, length, count) in enumerate([(2, 7, 3), (3, 9, 4), (1, 5, 1)]):
        batch, adapters = (
            batch_of(artifact.manifest, rows, length, seed),
            [adapter_of(artifact, n) for n in range(count)],
        )
        params, lowered = np.full(layout.num_elements, np.nan, np.float32), model.lower(batch, adapters[0], cut)

        def write(index: int, place: slice, adapters: list[Array] = adapters, params: Array = params) -> None:
            params[...] = np.nan
            params[place] = adapters[index][place]

        before = lowered.hidden.copy()
        found = model.upper_each(lowered, batch, params, cut, count, write)
        expected = [alone.upper(alone.lower(batch, adapters[0], cut), batch, one, cut)[0] for one in adapters]
        assert found == expected
        assert len(set(expected)) == count or cut == NUM_LAYERS
        np.testing.assert_array_equal(lowered.hidden, before)


@pytest.mark.parametrize("cut", range(1, NUM_LAYERS))
def test_the_gradient_above_a_cut_is_that_of_the_whole(artifact: Artifact, cut: int) -> None:
    """From hidden states without padding, as another process has them; nothing is written below the cut."""
    whole, upper = model_of(artifact), model_of(artifact)
    layout = AdapterLayout.of(artifact.manifest, Plan.full(artifact.manifest), RANK)
    parts, params = layout.parts(artifact.manifest), adapter_of(artifact, 0)
    above = slice(parts.blocks[cut].start, None)
    for seed, (rows, length) in enumerate([(3, 9), (2, 12), (1, 5)]):
        batch, given = batch_of(artifact.manifest, rows, length, seed), adapter_of(artifact, 9)
        hidden = upper.lower(batch, params, cut).hidden * batch.attention_mask[:, :, None].astype(np.float32)
        below = dataclasses.replace(batch, input_ids=np.zeros_like(batch.input_ids), below=hidden, cut=cut)
        expected, found = np.empty_like(params), np.full_like(params, np.nan)
        loss = whole.gradient(batch, params, given, expected, batch.num_targets)
        other = np.where(np.arange(len(params)) < above.start, np.float32(np.nan), params)
        assert upper.gradient(below, other, given, found, batch.num_targets) == pytest.approx(loss, rel=1e-5)
        assert np.abs(expected[above] - given[above]).max() > 1e-4
        np.testing.assert_allclose(found[above] - given[above], expected[above] - given[above], atol=2e-6)
        assert np.isnan(found[: above.start]).all()


def test_a_device_that_runs_lower_blocks_loads_no_others(artifact: Artifact) -> None:
    manifest, plan, params = artifact.manifest, Plan.full(artifact.manifest), adapter_of(artifact, 0)
    graphs = StagedGraphs(artifact, num_threads=1)
    kept = {*graphs.keeps_stored, manifest.word_embedding}
    inputs = graphs.stage(names.EMBEDDING_STAGE).inputs
    wanted = {t.name for t in manifest.tensors if (t.name in inputs if t.layer is None else t.layer < 2)}
    weights = slice_weights(artifact, plan, keep_stored=kept, wanted=wanted)
    assert set(weights) == wanted < {tensor.name for tensor in manifest.tensors}
    lower = graphs.model(weights, AdapterLayout.of(manifest, plan, RANK), 1.5)
    batch = batch_of(manifest, 3, 9, 0)
    expected = model_of(artifact).lower(batch, params, 2).hidden
    np.testing.assert_array_equal(lower.lower(batch, params, 2).hidden, expected)


def test_weights_are_converted_once_for_all_adapters(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    original = FrozenWeights.write

    def write(self: FrozenWeights, name: str, out: Array) -> None:
        converted.append(name)
        original(self, name, out)

    monkeypatch.setattr(FrozenWeights, "write", write)
    model, params, batch = model_of(artifact), adapter_of(artifact, 0), batch_of(artifact.manifest, 2, 5, 0)
    lowered = model.lower(batch, params, 1)
    model.upper(lowered, batch, params, 1)
    converted.clear()
    model.upper_each(lowered, batch, params, 1, 4, lambda *_: None)
    is_stored_otherwise = any(spec.dtype != "float32" for spec in artifact.manifest.tensors if len(spec.shape) > 1)
    assert len(converted) == len(set(converted))
    assert bool(converted) == is_stored_otherwise


def test_no_graph_but_forward_ones_is_loaded(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    original = Graph.__init__

    def spy(self: Graph, path: Path, **options: Any) -> None:
        loaded.append(path.name)
        original(self, path, **options)

    monkeypatch.setattr(Graph, "__init__", spy)
    model, params, batch = model_of(artifact), adapter_of(artifact, 0), batch_of(artifact.manifest, 2, 5, 0)
    lowered = model.lower(batch, params, 2)
    assert names.SCORE_STAGE not in loaded
    model.upper(lowered, batch, params, 2)
    forward = {names.EMBEDDING_STAGE, names.SCORE_STAGE, *(artifact.manifest.files.keys() & FORWARD_BLOCKS)}
    assert set(loaded) <= forward
    assert len(loaded) == len(set(loaded))


FORWARD_BLOCKS = {names.BLOCK_STAGE, names.PLAIN_BLOCK_STAGE, names.LAST_BLOCK_STAGE}


def test_a_batch_without_a_target_has_no_loss(tiny_llama_artifact: Path) -> None:
    artifact = Artifact.open(tiny_llama_artifact)
    model, params, batch = model_of(artifact), adapter_of(artifact, 0), batch_of(artifact.manifest, 2, 2, 0)
    alone = Batch(
        input_ids=batch.input_ids[:, :1], attention_mask=batch.attention_mask[:, :1], labels=batch.labels[:, :1]
    )
    assert model.upper(model.lower(alone, params, 1), alone, params, 1) == model.score(alone, params) == (0.0, 0)
