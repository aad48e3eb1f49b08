"""Shrinking where it is: nothing that stays changes, and training goes on as if the rest had never been there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import restrict_merged
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters
from tests.edge_runtime.engine.starts import start_adapter

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]
RANK, SCALING = 3, 2.0
GIVEN = HyperParameters(
    learning_rate=1e-2,
    weight_decay=0.1,
    lora_scaling=SCALING,
    max_grad_norm=0.5,
    num_warmup_steps=6,
    num_local_steps=7,
    batch_size=4,
    num_accumulation_steps=1,
    max_length=16,
    seed=0,
)


def start(trainer: Trainer, **changes: Any) -> TrainingRun:
    given = structs.replace(GIVEN, **changes)
    return trainer.start(Plan.full(trainer.artifact.manifest), RANK, start_adapter(trainer.artifact, RANK), given)


def make_batches(manifest: Manifest) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    while True:
        ids = rng.integers(4, manifest.text.vocab_size, (4, 9))
        labels = ids if manifest.task == "causal-lm" else rng.integers(0, len(manifest.labels), 4)
        yield Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


def half(manifest: Manifest) -> Plan:
    return Plan.from_kept(
        manifest,
        {
            (0, "heads"): [1, 2, 3],
            (1, "heads"): [0, 3],
            (0, "channels"): range(0, 24, 2),
            (1, "channels"): range(5, 20),
        },
    )


def quarter(manifest: Manifest) -> Plan:
    return Plan.from_kept(
        manifest,
        {(0, "heads"): [1, 3], (1, "heads"): [3], (0, "channels"): [0, 4, 20], (1, "channels"): [5, 6, 7, 19]},
    )


def moments(run: TrainingRun) -> tuple[Tensors, Tensors]:
    return tuple(run.layout.unflatten(run._state[name].copy()) for name in (names.EXP_AVG, names.EXP_AVG_SQ))  # type: ignore[return-value]


def adamw(tensors: Tensors, gradient: Tensors, first: dict[str, Any], second: dict[str, Any], step: int) -> None:
    """One step in place, written from the paper; clipping by the norm of everything."""
    norm = np.sqrt(sum(float(np.square(g.astype(np.float64)).sum()) for g in gradient.values()))
    clip = min(1.0, GIVEN.max_grad_norm / (norm + 1e-6)) if GIVEN.max_grad_norm else 1.0
    rate = GIVEN.learning_rate * min(1.0, step / GIVEN.num_warmup_steps)
    for name, value in tensors.items():
        g = gradient[name] * clip
        first[name] = GIVEN.beta1 * first[name] + (1 - GIVEN.beta1) * g
        second[name] = GIVEN.beta2 * second[name] + (1 - GIVEN.beta2) * g * g
        mean, square = first[name] / (1 - GIVEN.beta1**step), second[name] / (1 - GIVEN.beta2**step)
        decayed = value * (1 - rate * GIVEN.weight_decay)
        tensors[name] = (decayed - rate * mean / (np.sqrt(square) + GIVEN.epsilon)).astype(np.float32)


def test_going_on_equals_restricting_and_going_on_by_hand(trainer: Trainer) -> None:
    """By hand: sliced anew from the base, gradients of fresh runs, AdamW in numpy with the old moments and count."""
    manifest, plan = trainer.artifact.manifest, half(trainer.artifact.manifest)
    run, drawn = start(trainer), make_batches(manifest)
    for _ in range(3):
        run.step([next(drawn)])
    tensors, (first, second) = run.adapter(), moments(run)
    run.prune(plan)
    tensors, first, second = (adapters.restrict(manifest, t, plan, RANK) for t in (tensors, first, second))
    for step in range(4, 7):
        batch = next(drawn)
        fresh = trainer.start(plan, RANK, tensors, GIVEN)
        expected = fresh.step([batch])
        adamw(tensors, fresh.gradient(), first, second, step)
        assert run.step([batch]) == pytest.approx(expected, rel=1e-5)
        for name, value in run.adapter().items():
            np.testing.assert_allclose(value, tensors[name], rtol=0, atol=3e-6, err_msg=name)
    assert run.num_steps == 6


def test_what_stays_keeps_its_bits(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    run.step([next(make_batches(manifest))])
    before = [run.adapter(), *moments(run), run.gradient()]
    run.prune(half(manifest))
    for old, new in zip(before, [run.adapter(), *moments(run), run.gradient()], strict=True):
        expected = adapters.restrict(manifest, old, half(manifest), RANK)
        assert new.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(new[name], value)
    sliced = slice_weights(trainer.artifact, half(manifest))
    for name, value in run.weights.items():
        np.testing.assert_array_equal(value, sliced[name])
        assert value.flags.c_contiguous


def test_two_prunings_are_one(trainer: Trainer) -> None:
    manifest, batch = trainer.artifact.manifest, next(make_batches(trainer.artifact.manifest))
    once, twice = start(trainer), start(trainer)
    for run in (once, twice):
        run.step([batch])
    twice.prune(half(manifest))
    for run in (once, twice):
        run.prune(quarter(manifest))
    assert once.step([batch]) == twice.step([batch])
    for name, value in once.adapter().items():
        np.testing.assert_array_equal(value, twice.adapter()[name])


def test_pruning_to_the_same_plan_changes_nothing(trainer: Trainer) -> None:
    manifest, batch = trainer.artifact.manifest, next(make_batches(trainer.artifact.manifest))
    plain, pruned = start(trainer), start(trainer)
    for run in (plain, pruned):
        run.step([batch])
    pruned.prune(Plan.full(manifest))
    assert plain.step([batch]) == pruned.step([batch])


def test_evaluation_after_pruning_is_that_of_the_smaller_plan(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    run.prune(half(manifest))
    fresh = trainer.start(half(manifest), RANK, run.adapter(), GIVEN)
    batch = next(make_batches(manifest))
    assert run.step([batch]) == fresh.step([batch])


def test_units_do_not_come_back(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    run.prune(quarter(manifest))
    with pytest.raises(PlanError, match="cannot bring units back: layer 0, heads keeps \\[2\\]"):
        run.prune(half(manifest))


def test_loop_prunes_before_the_steps_it_is_told(trainer: Trainer) -> None:
    manifest, run = trainer.artifact.manifest, start(trainer)
    prunings = {1: half(manifest), 4: quarter(manifest)}
    plans = []
    drawn = make_batches(manifest)
    train(run, drawn, GIVEN, lambda step, _: plans.append((step, run.plan)), prunings=prunings)
    assert plans == [(step, half(manifest) if step < 4 else quarter(manifest)) for step in range(1, 8)]
    AdapterLayout.of(manifest, quarter(manifest), RANK).check(run.adapter())


@pytest.mark.parametrize(
    ("every", "num_steps", "expected"), [(3, 7, 2), (7, 7, 1), (20, 7, 1), (1, 3, 3), (0, 4, 0)], ids=str
)
def test_loop_scores_units_as_often_as_asked(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, every: int, num_steps: int, expected: int
) -> None:
    run, scored = start(trainer), []
    score = run.score_units

    def spy() -> None:
        scored.append(run.num_steps)
        score()

    monkeypatch.setattr(run, "score_units", spy)
    given = structs.replace(GIVEN, importance_every_steps=every, num_local_steps=num_steps)
    result = train(run, repeat(next(make_batches(trainer.artifact.manifest))), given)
    assert len(scored) == expected
    assert bool(run.importance()) == bool(expected)
    assert (result.importance_s > 0) == bool(expected)


def test_scoring_changes_no_training(trainer: Trainer) -> None:
    manifest = trainer.artifact.manifest
    plain, scored = start(trainer), start(trainer)
    first = train(plain, make_batches(manifest), GIVEN)
    second = train(scored, make_batches(manifest), structs.replace(GIVEN, importance_every_steps=2))
    assert first.mean_loss == second.mean_loss
    for name, value in plain.adapter().items():
        np.testing.assert_array_equal(value, scored.adapter()[name])


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_factors_that_are_not_trained_keep_their_bits(trainer: Trainer, weight_decay: float) -> None:
    manifest, start_with = trainer.artifact.manifest, start_adapter(trainer.artifact, RANK)
    run = start(trainer, trainable="lora_b", weight_decay=weight_decay)
    drawn = make_batches(manifest)
    for step in range(6):
        if step == 3:
            run.prune(half(manifest))
        run.step([next(drawn)])
    kept = adapters.restrict(manifest, start_with, half(manifest), RANK)
    for name, value in run.adapter().items():
        assert np.array_equal(value, kept[name]) == names.is_lora_a(name), name
    for name, value in [item for tensors in moments(run) for item in tensors.items()]:
        assert value.any() != names.is_lora_a(name), name


def test_clipping_sees_only_what_is_trained(trainer: Trainer) -> None:
    batch = next(make_batches(trainer.artifact.manifest))
    whole, part = start(trainer), start(trainer, trainable="lora_b")
    whole.step([batch])
    part.step([batch])
    trained = {name: g for name, g in whole.gradient().items() if not names.is_lora_a(name)}
    norm = np.sqrt(sum(float(np.square(g.astype(np.float64)).sum()) for g in trained.values()))
    assert part.grad_norm == pytest.approx(norm, rel=1e-5)
    assert part.grad_norm < whole.grad_norm


def merged_factors(manifest: Manifest, inner: int) -> dict[str, tuple[Array, Array]]:
    rng = np.random.default_rng(9)
    return {
        target.module: (
            rng.normal(0, 0.4, (inner, target.in_features)).astype(np.float32),
            rng.normal(0, 0.4, (target.out_features, inner)).astype(np.float32),
        )
        for target in manifest.targets[::2]
    }


@pytest.mark.parametrize("pruned", [False, True], ids=["full", "pruned"])
def test_merged_factors_act_as_an_adapter_of_theirs(trainer: Trainer, pruned: bool) -> None:  # noqa: FBT001
    """Folded into the base, or as further components of the adapter: the same loss."""
    manifest, artifact = trainer.artifact.manifest, trainer.artifact
    plan = half(manifest) if pruned else Plan.full(manifest)
    merged = merged_factors(manifest, 2)
    adapter = start_adapter(artifact, RANK)
    joined = dict(adapter)
    for target in manifest.targets:
        zero = (np.zeros((2, target.in_features), np.float32), np.zeros((target.out_features, 2), np.float32))
        a, b = merged.get(target.module, zero)
        name_a, name_b = names.lora_a(target.module), names.lora_b(target.module)
        joined[name_a], joined[name_b] = np.vstack([adapter[name_a], a]), np.hstack([adapter[name_b], b])
    batch = next(make_batches(manifest))
    folded = trainer.start(
        plan, RANK, adapters.restrict(manifest, adapter, plan, RANK), GIVEN, restrict_merged(manifest, merged, plan)
    )
    beside = trainer.start(plan, RANK + 2, adapters.restrict(manifest, joined, plan, RANK + 2), GIVEN)
    bare = trainer.start(plan, RANK, adapters.restrict(manifest, adapter, plan, RANK), GIVEN)
    loss = folded.step([batch])
    assert loss == pytest.approx(beside.step([batch]), rel=1e-5)
    assert abs(loss - bare.step([batch])) > 1e-3


def test_merged_factors_stay_when_the_plan_shrinks(trainer: Trainer) -> None:
    manifest, plan = trainer.artifact.manifest, half(trainer.artifact.manifest)
    merged, batch = merged_factors(manifest, 2), next(make_batches(trainer.artifact.manifest))
    run = trainer.start(Plan.full(manifest), RANK, start_adapter(trainer.artifact, RANK), GIVEN, merged)
    run.prune(plan)
    small = trainer.start(plan, RANK, run.adapter(), GIVEN, restrict_merged(manifest, merged, plan))
    assert run.step([batch]) == pytest.approx(small.step([batch]), rel=1e-6)


def test_merged_factors_leave_the_base_alone(trainer: Trainer) -> None:
    artifact, manifest = trainer.artifact, trainer.artifact.manifest
    before = {name: value.copy() for name, value in slice_weights(artifact, Plan.full(manifest)).items()}
    merged = merged_factors(manifest, 2)
    weights = slice_weights(artifact, Plan.full(manifest), merged, lora_scaling=SCALING)
    again = slice_weights(artifact, Plan.full(manifest))
    for name, value in again.items():
        np.testing.assert_array_equal(value, before[name])
        factors = merged.get(name.removesuffix(".weight"))
        change = 0.0 if factors is None else SCALING * factors[1] @ factors[0]
        np.testing.assert_allclose(weights[name], value + change, rtol=0, atol=1e-6)
        assert weights[name].dtype == np.float32


def test_merged_factors_must_fit_the_plan(trainer: Trainer) -> None:
    manifest = trainer.artifact.manifest
    plan = half(manifest)
    adapter = adapters.restrict(manifest, start_adapter(trainer.artifact, RANK), plan, RANK)
    with pytest.raises(TensorError, match="merged factors"):
        trainer.start(plan, RANK, adapter, GIVEN, merged_factors(manifest, 2))
