"""Importance: the formula against a plain one in PyTorch, planted units, grouped-query attention, smoothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from edge_runtime.engine import importance
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.importance import ImportanceTracker, sensitivity_sums, unit_scores
from edge_runtime.engine.trainer import Trainer, TrainingRun
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import PlanPolicy, plan_at
from edge_runtime.wire.work import HyperParameters
from tests.edge_runtime.engine.planted import KINDS, draw_units, plant, removed
from tests.edge_runtime.engine.starts import start_adapter

Array = npt.NDArray[np.float32]
RANK, SCALING = 3, 2.0
GIVEN = HyperParameters(
    learning_rate=1e-3,
    weight_decay=0.0,
    lora_scaling=SCALING,
    max_grad_norm=None,
    num_warmup_steps=0,
    num_local_steps=4,
    batch_size=4,
    num_accumulation_steps=1,
    max_length=16,
    seed=0,
)


def random(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("num_out", "num_in"), [(5, 7), (1, 1), (300, 4), (4, 300)], ids=str)
@pytest.mark.parametrize("block", [1, 64, 1 << 16])
def test_sums_are_those_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, num_out: int, num_in: int, block: int
) -> None:
    """LoRAPrune's sensitivity, written as the paper's code has it, in PyTorch and double precision."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(importance, "_BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(num_out)
    shapes = [(num_out, num_in), (RANK, num_in), (num_out, RANK), (RANK, num_in), (num_out, RANK)]
    arrays = [random(rng, *shape) for shape in shapes]
    rows, columns = sensitivity_sums(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], SCALING)
    w, a, b, grad_a, grad_b = (torch.from_numpy(x).double() for x in arrays)
    gradient = grad_b @ a + b @ grad_a - grad_b @ grad_a
    sensitivity = (gradient * (w + SCALING * b @ a)).abs()
    np.testing.assert_allclose(rows, sensitivity.sum(1), rtol=1e-5)
    np.testing.assert_allclose(columns, sensitivity.sum(0), rtol=1e-5)


def test_estimate_is_exact_where_the_factors_span_everything() -> None:
    """A orthogonal and square, B zero: ``gB A`` is all of the gradient with respect to ``B A``, as autograd has it."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    x, w = torch.from_numpy(random(rng, 9, 6)), torch.from_numpy(random(rng, 4, 6))
    a = torch.from_numpy(orthogonal).requires_grad_()
    b = torch.zeros(4, 6, requires_grad=True)
    product = torch.zeros(4, 6, requires_grad=True)  # stands for B A
    target = torch.from_numpy(random(rng, 9, 4))
    (x @ (w + SCALING * b @ a).T - target).square().mean().backward()
    (x @ (w + SCALING * product).T - target).square().mean().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert product.grad is not None
    rows, columns = sensitivity_sums(
        w.numpy(), orthogonal, np.zeros((4, 6), np.float32), a.grad.numpy(), b.grad.numpy(), SCALING
    )
    expected = (product.grad * w).abs()
    np.testing.assert_allclose(rows, expected.sum(1), rtol=1e-4)
    np.testing.assert_allclose(columns, expected.sum(0), rtol=1e-4)


@pytest.fixture(scope="module", params=["tiny_bert_artifact", "tiny_llama_artifact"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    directory: Path = request.getfixturevalue(request.param)
    return Artifact.open(directory)


@pytest.fixture(scope="module")
def trainer(artifact: Artifact) -> Trainer:
    return Trainer(artifact, num_threads=1)


def make_batch(manifest: Manifest, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, manifest.text.vocab_size, (4, 9))
    labels = ids if manifest.task == "causal-lm" else rng.integers(0, len(manifest.labels), 4)
    return Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


def start(trainer: Trainer, **changes: Any) -> TrainingRun:
    artifact = trainer.artifact
    return trainer.start(
        Plan.full(artifact.manifest), RANK, start_adapter(artifact, RANK), structs.replace(GIVEN, **changes)
    )


def coupled(manifest: Manifest, layer: int) -> dict[str, list[tuple[str, int, int]]]:
    """Module, axis and rows or columns of a unit, from the names alone: what a person knows of the families."""
    if manifest.family == "bert":
        attention, head = f"bert.encoder.layer.{layer}.attention", 8
        return {
            "heads": [
                *((f"{attention}.self.{part}", 0, head) for part in ("query", "key", "value")),
                (f"{attention}.output.dense", 1, head),
            ],
            "channels": [
                (f"bert.encoder.layer.{layer}.intermediate.dense", 0, 1),
                (f"bert.encoder.layer.{layer}.output.dense", 1, 1),
            ],
        }
    block = f"model.layers.{layer}"  # 8 query heads on 4 key/value heads of 8
    sizes = {"q_proj": (0, 16), "k_proj": (0, 8), "v_proj": (0, 8), "o_proj": (1, 16)}
    mlp = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    return {
        "heads": [(f"{block}.self_attn.{part}", axis, width) for part, (axis, width) in sizes.items()],
        "channels": [(f"{block}.mlp.{part}", axis, 1) for part, axis in mlp.items()],
    }


def plain_scores(run: TrainingRun, adapter: dict[str, Array], manifest: Manifest) -> dict[tuple[int, str], Array]:
    """The formula again, dense, unit by unit."""
    gradient, out = run.gradient(), {}
    for layer in range(manifest.num_layers):
        for group, matrices in coupled(manifest, layer).items():
            total: Any = 0.0
            for module, axis, width in matrices:
                a, b = (adapter[name(module)].astype(np.float64) for name in (names.lora_a, names.lora_b))
                ga, gb = (gradient[name(module)].astype(np.float64) for name in (names.lora_a, names.lora_b))
                estimate = gb @ a + b @ ga - gb @ ga
                s = np.abs(estimate * (run.weights[f"{module}.weight"] + SCALING * b @ a))
                s = s if axis == 0 else s.T
                units = np.array([s[u : u + width].sum() for u in range(0, s.shape[0], width)])
                total = total + units / np.linalg.norm(units)
            out[layer, group] = total
    return out


def test_groups_are_summed_over_all_coupled_matrices(trainer: Trainer) -> None:
    """Grouped-query attention included: a unit has twice as many rows in q and columns in o as rows in k and v."""
    manifest, run = trainer.artifact.manifest, start(trainer)
    adapter = run.adapter()
    run.step([make_batch(manifest)])
    run.score_units()
    expected, scores = plain_scores(run, adapter, manifest), run.importance()
    assert scores.keys() == expected.keys() == {(g.layer, g.group) for g in manifest.groups}
    for key, value in expected.items():
        assert scores[key].dtype == np.float32
        np.testing.assert_allclose(scores[key], value, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_dead_units_are_pruned_first(trainer: Trainer, kind: str) -> None:
    """B starts at zero, as in a first round, so a unit that is cut off stays cut off until it is trained."""
    artifact = trainer.artifact
    manifest, rng = artifact.manifest, np.random.default_rng(7)
    dead = draw_units(manifest, rng)
    adapter = adapters.initial(manifest, artifact.initial(), 4, rng)
    given = structs.replace(GIVEN, learning_rate=1e-4)
    run = TrainingRun(trainer, Plan.full(manifest), 4, adapter, given, FrozenWeights(plant(artifact, dead, kind)))
    for seed in range(4):
        run.step([make_batch(manifest, seed)])
        run.score_units()
    scores = run.importance()
    for key, units in dead.items():
        alive = np.setdiff1d(np.arange(scores[key].size), units)
        assert scores[key][units].max() < 0.2 * scores[key][alive].min(), key
    assert removed(manifest, plan_at(manifest, scores, 0.25)) == dead
    over_layers = plan_at(manifest, scores, 0.25, PlanPolicy(scope="global"))
    assert removed(manifest, over_layers) == dead
    further = removed(manifest, plan_at(manifest, scores, 0.5))
    assert all(set(units) < set(further[key]) for key, units in dead.items())


def test_a_key_value_head_is_dead_only_with_all_its_query_heads(tiny_llama_artifact: Path) -> None:
    """Grouped-query attention: unit 1 of each layer has lost one of its two query heads, unit 2 both."""
    artifact = Artifact.open(tiny_llama_artifact)
    manifest, rng = artifact.manifest, np.random.default_rng(3)
    dead = {(g.layer, g.group): [2] if g.group == "heads" else [] for g in manifest.groups}
    weights = plant(artifact, dead, "disconnected")
    for layer in range(manifest.num_layers):
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"][:, 16:24] = 0.0
    adapter = adapters.initial(manifest, artifact.initial(), 4, rng)
    trainer = Trainer(artifact, num_threads=1)
    given = structs.replace(GIVEN, learning_rate=1e-4)
    run = TrainingRun(trainer, Plan.full(manifest), 4, adapter, given, FrozenWeights(weights))
    run.step([make_batch(manifest)])
    run.score_units()
    for layer in range(manifest.num_layers):
        scores = run.importance()[layer, "heads"]
        assert scores[2] < 0.01 * scores[1]
        assert scores[1] < scores[[0, 3]].min()


def test_scores_are_smoothed_from_the_first_on(manifest: Manifest) -> None:
    tracker = ImportanceTracker(Plan.full(manifest))
    key = (0, "heads")
    for value in (1.0, 2.0, 4.0):
        tracker.update({key: np.array([value, 10 * value], np.float32)})
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 4.0
    np.testing.assert_allclose(tracker._scores[key], [expected, 10 * expected], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_skipped_group_by_group(trainer: Trainer, bad: float) -> None:
    manifest = trainer.artifact.manifest
    tracker = ImportanceTracker(Plan.full(manifest))
    good = {(g.layer, g.group): np.ones(g.num_units, np.float32) for g in manifest.groups}
    key = (1, "channels")
    broken = good | {key: np.full_like(good[key], bad)}
    tracker.update(broken)
    assert tracker.scores() == {}  # nothing is known of one group yet
    tracker.update(good)
    tracker.update({k: 3 * v for k, v in broken.items()})
    scores = tracker.scores()
    np.testing.assert_array_equal(scores[key], good[key])
    np.testing.assert_allclose(scores[0, "channels"], 1.2, rtol=1e-6)


def test_overflow_is_no_warning_and_no_score(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    huge = {name: np.full_like(value, 1e30) for name, value in run.adapter().items()}
    tracker = ImportanceTracker(run.plan)
    tracker.update(unit_scores(manifest, run.weights, huge, huge, SCALING))
    assert tracker.scores() == {}


def test_units_of_a_smaller_plan_keep_their_scores(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    run.step([make_batch(manifest)])
    run.score_units()
    before = run.importance()
    plan = Plan.from_kept(manifest, {(0, "heads"): [1, 3], (1, "channels"): [0, 5, 23]})
    run.prune(plan)
    after = run.importance()
    for key, scores in before.items():
        np.testing.assert_array_equal(after[key], scores[plan.kept(*key)])


def test_a_factor_that_is_not_trained_has_no_gradient(trainer: Trainer) -> None:
    """G is then ``gB A`` alone."""
    manifest, run = trainer.artifact.manifest, start(trainer, trainable="lora_b")
    adapter = run.adapter()
    run.step([make_batch(manifest)])
    run.score_units()
    without = {name: value for name, value in run.gradient().items() if not names.is_lora_a(name)}
    expected = unit_scores(manifest, run.weights, adapter, without, SCALING)
    for key, scores in run.importance().items():
        np.testing.assert_allclose(scores, expected[key], rtol=1e-6)
