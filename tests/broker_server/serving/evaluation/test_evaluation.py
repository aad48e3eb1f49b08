"""The server's evaluation: the devices' own code, on one sample that all rounds share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from broker_server.methods.aggregation import Aggregated
from broker_server.serving.evaluation.held_out import HeldOut
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.errors import DataEmptyError, DataInvalidError, UnknownLabelError
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.fused import FusedGraphs
from edge_runtime.engine.slicing import shrink_weights, slice_weights
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, initial, restrict
from edge_runtime.formats.payload import restrict_merged
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.zero_order.noise import signs

pytest.importorskip("torch", reason="needs an exported model")

NOUNS = ["cat", "dog", "sun", "moon", "sea", "wind"]


@pytest.fixture
def held_out_file(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [{"text": f"the {noun} {verb}", "label": "red"} for noun in NOUNS for verb in ("runs", "sleeps", "sings")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def held_out(artifact: Artifact, path: Path, *, num_examples: int | None = None, seed: int = 0) -> HeldOut:
    return HeldOut(artifact, path, max_length=16, num_examples=num_examples, batch_size=4, seed=seed)


def test_it_is_what_a_device_would_measure(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, held_out_file).evaluate(
        Aggregated(adapter=adapter), 4, 2.0, use_all=True, num_threads=1
    )
    dataset = load_examples(held_out_file, artifact, 16)
    expected = Evaluator.load(artifact, Plan.full(artifact.manifest), num_threads=1).evaluate(
        adapter, 4, 2.0, dataset, 32
    )
    assert (record.num_targets, record.is_complete) == (18, True)
    assert (record.loss, record.accuracy) == pytest.approx((expected.loss, expected.accuracy))


def test_sample_is_the_same_in_every_round_and_smaller(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    examples = held_out(artifact, held_out_file, num_examples=7)
    first = examples.evaluate(Aggregated(adapter=adapter), 4, 2.0, use_all=False, num_threads=1)
    second = examples.evaluate(Aggregated(adapter=adapter), 4, 2.0, use_all=False, num_threads=1)
    assert (first.num_targets, first.is_complete, first.on_all) == (7, False, None)
    assert first.loss == second.loss
    again = held_out(artifact, held_out_file, num_examples=7).evaluate(
        Aggregated(adapter=adapter), 4, 2.0, use_all=False, num_threads=1
    )
    assert again.loss == pytest.approx(first.loss)


def test_sample_that_is_everything_is_complete(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, held_out_file, num_examples=1000).evaluate(
        Aggregated(adapter=adapter), 4, 2.0, use_all=False, num_threads=1
    )
    assert record.is_complete


def test_the_last_round_is_measured_on_the_sample_and_on_all(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    state = Aggregated(adapter=adapter)
    sampled = held_out(artifact, held_out_file, num_examples=7)
    sample = sampled.evaluate(state, 4, 2.0, use_all=False, num_threads=2)
    last = sampled.evaluate(state, 4, 2.0, use_all=True, num_threads=2)
    everything = held_out(artifact, held_out_file).evaluate(state, 4, 2.0, use_all=True, num_threads=2)
    assert last.loss == pytest.approx(sample.loss)
    assert (last.num_targets, last.is_complete) == (7, False)
    assert everything.on_all is None
    assert everything.best_known is everything
    assert last.on_all is not None
    assert last.best_known is last.on_all
    assert (last.on_all.num_targets, last.on_all.is_complete) == (18, True)
    assert (last.on_all.loss, last.on_all.accuracy) == pytest.approx((everything.loss, everything.accuracy))


def test_causal_lm_counts_predicted_tokens(tiny_llama_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_llama_artifact)
    adapter = initial(artifact.manifest, artifact.initial(), 4, np.random.default_rng(0))
    record = held_out(artifact, held_out_file).evaluate(
        Aggregated(adapter=adapter), 4, 2.0, use_all=True, num_threads=1
    )
    assert record.num_targets > 18
    assert np.isfinite(record.loss)


def random_state(artifact: Artifact, rng: np.random.Generator) -> Aggregated:
    """An adapter of rank 4 that changes something, and three components merged into every other target."""
    manifest = artifact.manifest
    adapter = initial(manifest, artifact.initial(), 4, rng)
    adapter = {key: rng.normal(0.0, 0.3, value.shape).astype(np.float32) for key, value in adapter.items()}
    merged = {
        target.module: (
            rng.normal(0.0, 0.3, (3, target.in_features)).astype(np.float32),
            rng.normal(0.0, 0.3, (target.out_features, 3)).astype(np.float32),
        )
        for target in manifest.targets[::2]
    }
    return Aggregated(adapter=adapter, merged=merged)


def test_merged_factors_count_as_more_components_of_the_adapter(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    rng = np.random.default_rng(3)
    state = random_state(artifact, rng)
    examples = held_out(artifact, held_out_file)
    record = examples.evaluate(state, 4, 2.0, use_all=True, num_threads=2)
    wide = {spec.name: state.adapter[spec.name] for spec in artifact.manifest.dense}
    for target in artifact.manifest.targets:
        nothing = np.zeros((3, target.in_features), np.float32), np.zeros((target.out_features, 3), np.float32)
        more_a, more_b = state.merged.get(target.module, nothing)
        a, b = names.lora_a(target.module), names.lora_b(target.module)
        wide[a] = np.concatenate([state.adapter[a], more_a])
        wide[b] = np.concatenate([state.adapter[b], more_b], axis=1)
    expected = examples.evaluate(Aggregated(adapter=wide), 7, 2.0, use_all=True, num_threads=2)
    without = examples.evaluate(Aggregated(adapter=state.adapter), 4, 2.0, use_all=True, num_threads=2)
    assert record.loss == pytest.approx(expected.loss, rel=1e-4)
    assert abs(without.loss - record.loss) > 1e-3


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_pool_of_seeds_moves_all_weights_before_anything_is_cut(
    tiny_bert_artifact: Path, held_out_file: Path, *, is_cut: bool
) -> None:
    """By hand: each weight and the head less the noise of the pool, cut by the plan; LoRA's factors are 0."""
    artifact = Artifact.open(tiny_bert_artifact)
    manifest, full = artifact.manifest, Plan.full(artifact.manifest)
    half = Plan.from_kept(manifest, {(g.layer, g.group): np.arange(0, g.num_units, 2) for g in manifest.groups})
    plan = half if is_cut else full
    adapter = initial(manifest, artifact.initial(), 4, np.random.default_rng(0))
    pool = SeedPool(seed=3, coefficients=np.array([0, 0.02], "<f4").tobytes())
    record = held_out(artifact, held_out_file).evaluate(
        Aggregated(adapter=adapter, pool=pool), 4, 2.0, use_all=True, num_threads=1, plan=plan if is_cut else None
    )
    weights = FrozenWeights(dict(slice_weights(artifact, full)))
    for index, spec in enumerate(manifest.tensors):
        noise = signs(3, 0, 0, 1, index, weights[spec.name].size).reshape(spec.shape)
        weights.put(spec.name, weights[spec.name] - np.float32(0.02) * noise)
    for index, dense in enumerate(manifest.dense, start=len(manifest.tensors)):
        noise = signs(3, 0, 0, 1, index, adapter[dense.name].size).reshape(dense.shape)
        adapter[dense.name] = adapter[dense.name] - np.float32(0.02) * noise
    for name, value in shrink_weights(manifest, weights, full, plan):
        weights.put(name, value)
    model = FusedGraphs(artifact, num_threads=1).model(weights, AdapterLayout.of(manifest, plan, 4), 2.0)
    expected = Evaluator(artifact, plan, model).evaluate(
        restrict(manifest, adapter, plan, 4), 4, 2.0, load_examples(held_out_file, artifact, 16), 16
    )
    assert record.loss == pytest.approx(expected.loss, rel=1e-6)
    unmoved = held_out(artifact, held_out_file).evaluate(
        Aggregated(adapter=initial(manifest, artifact.initial(), 4, np.random.default_rng(0))),
        4,
        2.0,
        use_all=True,
        num_threads=1,
        plan=plan if is_cut else None,
    )
    assert abs(unmoved.loss - record.loss) > 1e-4


def test_a_sub_model_is_evaluated_as_a_device_would(tiny_bert_artifact: Path, held_out_file: Path) -> None:
    artifact = Artifact.open(tiny_bert_artifact)
    manifest = artifact.manifest
    state = random_state(artifact, np.random.default_rng(4))
    plan = Plan.from_kept(manifest, {(g.layer, g.group): np.arange(0, g.num_units, 2) for g in manifest.groups})
    examples = held_out(artifact, held_out_file)
    record = examples.evaluate(state, 4, 2.0, use_all=True, num_threads=1, plan=plan)
    weights = slice_weights(artifact, plan, restrict_merged(manifest, state.merged, plan), lora_scaling=2.0)
    layout = AdapterLayout.of(manifest, plan, 4)
    evaluator = Evaluator(artifact, plan, FusedGraphs(artifact, num_threads=1).model(weights, layout, 2.0))
    dataset = load_examples(held_out_file, artifact, 16)
    expected = evaluator.evaluate(restrict(manifest, state.adapter, plan, 4), 4, 2.0, dataset, 16)
    whole = examples.evaluate(state, 4, 2.0, use_all=True, num_threads=1)
    assert record.loss == pytest.approx(expected.loss, rel=1e-5)
    assert abs(whole.loss - record.loss) > 1e-4


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", DataEmptyError),
        ('{"text": "the cat"}\n', DataInvalidError),
        ('{"text": "the cat", "label": "violet"}\n', UnknownLabelError),
    ],
    ids=["empty", "no label", "unknown label"],
)
def test_file_that_cannot_be_used_is_refused_at_the_start(
    tiny_bert_artifact: Path, tmp_path: Path, content: str, error: type[Exception]
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(content)
    with pytest.raises(error):
        held_out(Artifact.open(tiny_bert_artifact), path)
