"""Training on the tiny exported artifacts: state, accumulation, warm-up, divergence, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from edge_runtime.engine.dataset import Batch, Dataset
from edge_runtime.engine.errors import DivergedError
from edge_runtime.engine.evaluator import EvaluationResult, Evaluator
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.errors import TensorError
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters
from tests.edge_runtime.engine.starts import start_adapter

RANK = 3
GIVEN = HyperParameters(
    learning_rate=1e-2,
    weight_decay=0.0,
    lora_scaling=2.0,
    max_grad_norm=None,
    num_warmup_steps=0,
    num_local_steps=4,
    batch_size=4,
    num_accumulation_steps=1,
    max_length=16,
    seed=0,
)


def start(trainer: Trainer, **changes: Any) -> TrainingRun:
    given = structs.replace(GIVEN, **changes)
    return trainer.start(Plan.full(trainer.artifact.manifest), RANK, start_adapter(trainer.artifact, RANK), given)


def make_batch(trainer: Trainer, rows: int = 4, seed: int = 0) -> Batch:
    rng, manifest = np.random.default_rng(seed), trainer.artifact.manifest
    ids = rng.integers(4, manifest.text.vocab_size, (rows, 9))
    labels = ids if manifest.task == "causal-lm" else rng.integers(0, len(manifest.labels), rows)
    return Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


def flat(tensors: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.concatenate([value.reshape(-1) for value in tensors.values()])


def test_loss_falls_on_a_repeated_batch(trainer: Trainer) -> None:
    run, batch = start(trainer), make_batch(trainer)
    losses = [run.step([batch]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_runs_do_not_touch_each_other(trainer: Trainer) -> None:
    batch = make_batch(trainer)
    alone = start(trainer)
    expected = [alone.step([batch]) for _ in range(3)]
    first, second = start(trainer), start(trainer, learning_rate=0.5)
    interleaved = []
    for _ in range(3):
        interleaved.append(first.step([batch]))
        second.step([batch])
    assert interleaved == expected


def test_adapter_is_a_copy_that_later_steps_leave_alone(trainer: Trainer) -> None:
    run, batch = start(trainer), make_batch(trainer)
    assert flat(run.adapter()).tolist() == flat(start_adapter(trainer.artifact, RANK)).tolist()
    run.step([batch])
    held = run.adapter()
    before = flat(held).copy()
    run.step([batch])
    run.step([batch])
    np.testing.assert_array_equal(flat(held), before)
    assert not np.array_equal(flat(run.adapter()), before)


@pytest.mark.parametrize("num_parts", [2, 3, 4])
def test_accumulation_equals_one_large_batch(trainer: Trainer, num_parts: int) -> None:
    whole = make_batch(trainer, rows=12)
    size = 12 // num_parts
    parts = [
        Batch(
            input_ids=np.ascontiguousarray(whole.input_ids[i : i + size]),
            attention_mask=np.ascontiguousarray(whole.attention_mask[i : i + size]),
            labels=np.ascontiguousarray(whole.labels[i : i + size]),
        )
        for i in range(0, 12, size)
    ]
    one, several = start(trainer), start(trainer)
    assert several.step(parts) == pytest.approx(one.step([whole]), rel=1e-5)
    expected = flat(one.gradient())
    assert np.linalg.norm(flat(several.gradient()) - expected) <= 1e-5 * np.linalg.norm(expected)
    assert several.grad_norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)


def test_warm_up_is_linear(trainer: Trainer) -> None:
    """The size of an AdamW step with a constant gradient is the learning rate, for every element."""
    run, batch = start(trainer, num_warmup_steps=4, learning_rate=1e-6), make_batch(trainer)
    moved = []
    for _ in range(6):
        before = flat(run.adapter()).astype(np.float64)
        run.step([batch])
        moved.append(float(np.abs(flat(run.adapter()) - before).mean()))
    ratios = np.array(moved) / moved[-1]
    np.testing.assert_allclose(ratios, [0.25, 0.5, 0.75, 1, 1, 1], atol=0.08)


def test_the_first_step_is_the_learning_rate_to_the_last_digits(trainer: Trainer) -> None:
    """Both moments are one gradient's, so bias corrections must cancel what rounding did to the betas."""
    run, batch = start(trainer, learning_rate=0.25), make_batch(trainer)
    before = flat(run.adapter()).astype(np.float64)
    run.step([batch])
    gradient = np.abs(flat(run.gradient()).astype(np.float64))
    is_large = gradient > 1e-4
    assert is_large.any()
    moved = np.abs(flat(run.adapter()) - before)[is_large]
    np.testing.assert_allclose(moved, 0.25 / (1 + GIVEN.epsilon / gradient[is_large]), rtol=2e-6)


def test_clipping_bounds_the_gradient_that_is_applied(trainer: Trainer) -> None:
    """With a huge epsilon AdamW's step is proportional to the clipped gradient."""
    batch = make_batch(trainer)
    moved = {}
    for limit in (None, 1e-3):
        run = start(trainer, max_grad_norm=limit, epsilon=1e3, learning_rate=1e3)
        run.step([batch])
        moved[limit] = np.linalg.norm(flat(run.adapter()) - flat(start_adapter(trainer.artifact, RANK)))
        assert run.grad_norm > 1e-2
    assert moved[1e-3] == pytest.approx(moved[None] * 1e-3 / run.grad_norm, rel=0.05)


def test_diverged_run_stops_and_keeps_its_last_adapter(trainer: Trainer) -> None:
    run, batch = start(trainer, learning_rate=1e30), make_batch(trainer)
    run.step([batch])
    before = flat(run.adapter()).copy()
    with pytest.raises(DivergedError, match="in step 2; lower the learning rate") as caught:
        run.step([batch])
    assert caught.value.step == 2
    np.testing.assert_array_equal(flat(run.adapter()), before)


def test_plan_and_adapter_must_fit(trainer: Trainer) -> None:
    manifest = trainer.artifact.manifest
    adapter = start_adapter(trainer.artifact, RANK)
    pruned = Plan.from_kept(manifest, {(0, "heads"): [0]})
    with pytest.raises(TensorError):
        trainer.start(pruned, RANK, adapter, GIVEN)
    with pytest.raises(TensorError):
        trainer.start(Plan.full(manifest), RANK - 1, adapter, GIVEN)


def test_loop_reports_every_step(trainer: Trainer) -> None:
    run, seen = start(trainer), []
    result = train(run, repeat(make_batch(trainer)), GIVEN, on_step=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert result.mean_loss == pytest.approx(sum(loss for _, loss in seen) / 4)
    assert len(result.step_times_s) == 4
    assert all(time_s > 0 for time_s in result.step_times_s)


def test_loop_draws_as_many_micro_batches_as_asked(trainer: Trainer) -> None:
    given = structs.replace(GIVEN, num_accumulation_steps=3, num_local_steps=2)
    source = iter([make_batch(trainer, seed=seed) for seed in range(7)])
    train(start(trainer), source, given)
    assert len(list(source)) == 1


class StopAtBatchError(Exception):
    """Raised by :func:`stop_at`."""


def stop_at(number: int) -> Callable[[], None]:
    """Raises when it is called for the ``number``-th time (1-based), and whenever it is called again."""
    calls = count(1)

    def on_batch() -> None:
        if next(calls) >= number:
            raise StopAtBatchError

    return on_batch


@pytest.mark.parametrize(("at_batch", "num_steps"), [(1, 0), (2, 0), (3, 0), (4, 1), (8, 2)], ids=str)
def test_loop_is_stopped_between_micro_batches(trainer: Trainer, at_batch: int, num_steps: int) -> None:
    """Half a step leaves no trace: the adapter is that of the steps before."""
    given = structs.replace(GIVEN, num_accumulation_steps=3)
    run, whole = start(trainer), start(trainer)
    drawn = [make_batch(trainer, seed=seed) for seed in range(12)]
    source = iter(drawn)
    with pytest.raises(StopAtBatchError):
        train(run, source, given, on_batch=stop_at(at_batch))
    assert run.num_steps == num_steps
    assert len(list(source)) == 12 - at_batch
    for step in range(num_steps):
        whole.step(drawn[3 * step : 3 * step + 3])
    np.testing.assert_array_equal(flat(run.adapter()), flat(whole.adapter()))


def test_evaluation_is_stopped_between_batches(trainer: Trainer) -> None:
    run, dataset = start(trainer), examples_of(trainer, [5, 6, 7])
    evaluator = run.evaluator()
    with pytest.raises(StopAtBatchError):
        evaluator.evaluate(run.adapter(), RANK, 2.0, dataset, 1, stop_at(2))
    whole = evaluator.evaluate(run.adapter(), RANK, 2.0, dataset, 1, stop_at(4))
    assert whole == evaluator.evaluate(run.adapter(), RANK, 2.0, dataset, 1)


def examples_of(trainer: Trainer, lengths: list[int]) -> Dataset:
    manifest, rng = trainer.artifact.manifest, np.random.default_rng(8)
    return Dataset(
        tokens=rng.integers(4, manifest.text.vocab_size, sum(lengths)).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=None if manifest.task == "causal-lm" else rng.integers(0, 3, len(lengths)),
        pad_token_id=manifest.text.pad_token_id,
    )


def test_evaluation_does_not_depend_on_batches_or_padding(trainer: Trainer) -> None:
    dataset, adapter = examples_of(trainer, [3, 30, 9, 17, 2]), start_adapter(trainer.artifact, RANK)
    evaluator = Evaluator.load(trainer.artifact, Plan.full(trainer.artifact.manifest), num_threads=1, mode=trainer.mode)
    one, many = (evaluator.evaluate(adapter, RANK, 2.0, dataset, size) for size in (1, 5))
    is_language = trainer.artifact.manifest.task == "causal-lm"
    assert one.num_targets == many.num_targets == (61 - 5 if is_language else 5)
    assert one.num_correct == many.num_correct
    assert one.loss_sum == pytest.approx(many.loss_sum, rel=1e-5)


def test_evaluator_of_a_run_sees_the_same_weights(trainer: Trainer) -> None:
    run, dataset = start(trainer), examples_of(trainer, [5, 6])
    shared = run.evaluator().evaluate(run.adapter(), RANK, 2.0, dataset, 2)
    own = Evaluator.load(trainer.artifact, run.plan, num_threads=1, mode=trainer.mode).evaluate(
        run.adapter(), RANK, 2.0, dataset, 2
    )
    assert shared == own


def test_nothing_to_evaluate(trainer: Trainer) -> None:
    empty = examples_of(trainer, [4]).subset(np.array([], np.int64))
    evaluator = Evaluator.load(trainer.artifact, Plan.full(trainer.artifact.manifest), num_threads=1, mode=trainer.mode)
    result = evaluator.evaluate(start_adapter(trainer.artifact, RANK), RANK, 2.0, empty, 2)
    assert result == EvaluationResult(loss_sum=0.0, num_targets=0, num_correct=0)
    assert math.isnan(result.loss)
    assert math.isnan(result.accuracy)


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert EvaluationResult(loss_sum=1e6, num_targets=1, num_correct=0).perplexity == math.inf
    assert EvaluationResult(loss_sum=2.0, num_targets=4, num_correct=0).perplexity == pytest.approx(math.exp(0.5))
