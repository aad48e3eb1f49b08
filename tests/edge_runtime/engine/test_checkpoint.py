"""Training that goes on from its checkpoint in another run is the training that was never cut."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.errors import CheckpointError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.engine.training_state import History, TrainingState
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import restrict_merged
from edge_runtime.formats.plan import PackedPlan, Plan
from edge_runtime.wire.work import HyperParameters

RANK, NUM_STEPS = 3, 9
GIVEN = HyperParameters(
    learning_rate=1e-2,
    weight_decay=0.1,
    lora_scaling=2.0,
    max_grad_norm=0.5,
    num_warmup_steps=7,
    num_local_steps=NUM_STEPS,
    batch_size=4,
    num_accumulation_steps=2,
    max_length=16,
    seed=0,
    importance_every_steps=2,
)


def plan_of(manifest: Manifest, heads: int, channels: int) -> Plan:
    kept = {(layer, "heads"): range(layer, layer + heads) for layer in range(2)}
    return Plan.from_kept(manifest, kept | {(layer, "channels"): range(layer, layer + channels) for layer in range(2)})


def prunings_of(manifest: Manifest) -> dict[int, Plan]:
    """Inside an accumulation of scores: units go before steps 3 and 7."""
    return {3: plan_of(manifest, 3, 16), 7: plan_of(manifest, 1, 8)}


def start(trainer: Trainer, **changes: Any) -> TrainingRun:
    """An assignment with merged factors, from an adapter that has moved."""
    artifact, rng = trainer.artifact, np.random.default_rng(4)
    manifest = artifact.manifest
    full = adapters.initial(manifest, artifact.initial(), RANK, rng)
    moved = {name: value + rng.normal(0, 0.05, value.shape).astype(np.float32) for name, value in full.items()}
    target = manifest.targets[0]
    merged = {
        target.module: (
            rng.normal(0, 0.3, (2, target.in_features)).astype(np.float32),
            rng.normal(0, 0.3, (target.out_features, 2)).astype(np.float32),
        )
    }
    plan = Plan.full(manifest)
    return trainer.start(plan, RANK, moved, structs.replace(GIVEN, **changes), restrict_merged(manifest, merged, plan))


def draw(manifest: Manifest) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    while True:
        ids = rng.integers(4, manifest.text.vocab_size, (4, int(rng.integers(5, 12))))
        labels = ids if manifest.task == "causal-lm" else rng.integers(0, len(manifest.labels), 4)
        yield Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)


def joined(parts: tuple[bytes | memoryview, ...]) -> bytes:
    return b"".join(bytes(part) for part in parts)


def keep(run: TrainingRun, history: History) -> bytes:
    """Bytes of a checkpoint: from here on the run may go on or go away."""
    before = EvaluationResult(loss_sum=1 / 3, num_targets=4, num_correct=2)
    made = Checkpoint(identity="me", state=run.state(), history=history, before=before, before_s=0.5, paused_s=0.25)
    return joined(encode_checkpoint(made))


def test_a_cut_after_any_step_changes_no_bit(trainer: Trainer) -> None:
    """Undisturbed, and cut after each step in turn: losses, adapter, scores, moments and step times' number."""
    manifest = trainer.artifact.manifest
    prunings, history = prunings_of(manifest), History()
    undisturbed = start(trainer)
    saved: dict[int, bytes] = {}

    def on_step(step: int, _loss: float) -> None:
        saved[step] = keep(undisturbed, history)

    result = train(undisturbed, draw(manifest), GIVEN, on_step, prunings=prunings, history=history)
    assert list(saved) == list(range(1, NUM_STEPS + 1))
    for cut in range(1, NUM_STEPS):
        checkpoint = decode_checkpoint(saved[cut])
        run, drawn = start(trainer), itertools.islice(draw(manifest), cut * GIVEN.num_accumulation_steps, None)
        run.restore(checkpoint.state)
        again = train(run, drawn, GIVEN, prunings=prunings, history=checkpoint.history)
        assert checkpoint.history.losses == history.losses, f"cut after step {cut}"
        assert again.mean_loss == result.mean_loss
        assert (run.num_steps, run.grad_norm, run.plan) == (NUM_STEPS, undisturbed.grad_norm, undisturbed.plan)
        assert again.step_times_s[:cut] == result.step_times_s[:cut]
        for name, value in undisturbed.state().vectors.items():
            np.testing.assert_array_equal(run.state().vectors[name], value, err_msg=f"{name}, step {cut}")
        assert run.importance().keys() == undisturbed.importance().keys() != set()
        for key, scores in undisturbed.importance().items():
            np.testing.assert_array_equal(run.importance()[key], scores)


def test_a_checkpoint_comes_back_as_it_was(trainer: Trainer) -> None:
    manifest, run, history = trainer.artifact.manifest, start(trainer, num_local_steps=4), History()
    train(
        run,
        draw(manifest),
        structs.replace(GIVEN, num_local_steps=4),
        prunings={3: prunings_of(manifest)[3]},
        history=history,
    )
    made = decode_checkpoint(keep(run, history))
    assert made.identity == "me"
    assert made.before == EvaluationResult(loss_sum=1 / 3, num_targets=4, num_correct=2)
    assert (made.before_s, made.paused_s, made.history) == (0.5, 0.25, history)
    state = run.state()
    assert (made.state.num_steps, made.state.grad_norm, made.state.plan) == (4, state.grad_norm, state.plan)
    for name, value in state.vectors.items():
        np.testing.assert_array_equal(made.state.vectors[name], value)
        assert made.state.vectors[name].flags.writeable
    assert made.state.scores.keys() == state.scores.keys() != set()


def test_no_copy_of_the_state_is_made(trainer: Trainer) -> None:
    run = start(trainer)
    made = Checkpoint(identity="", state=run.state(), history=History(), before=None, before_s=0.0, paused_s=0.0)
    views = [part for part in encode_checkpoint(made) if isinstance(part, memoryview)]
    assert len(views) == 3
    assert all(
        np.shares_memory(np.frombuffer(view, np.float32), value)
        for view, value in zip(views, run.state().vectors.values(), strict=True)
    )


@pytest.fixture
def kept(tiny_bert_artifact: Path) -> bytes:
    run = start(Trainer(Artifact.open(tiny_bert_artifact), num_threads=1))
    return keep(run, History())


@pytest.mark.parametrize("size", [0, 10, 32, 36, 40, 500, -1])
def test_a_cut_checkpoint_is_refused(kept: bytes, size: int) -> None:
    with pytest.raises(CheckpointError, match="wrong digest"):
        decode_checkpoint(kept[:size])


def test_a_flipped_bit_is_refused_wherever_it_is(kept: bytes) -> None:
    for place in range(0, len(kept), len(kept) // 40):
        damaged = bytearray(kept)
        damaged[place] ^= 4
        with pytest.raises(CheckpointError, match="wrong digest"):
            decode_checkpoint(bytes(damaged))


def sealed(body: bytes) -> bytes:
    """With a digest that is right, as a program of another version would write it."""
    return hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    "body",
    [b"", b"\x01", struct.pack("<I", 3) + b"abc", struct.pack("<I", 1) + b"\x80", struct.pack("<I", 2**31) + b"\xc1"],
    ids=["empty", "cut length", "no msgpack", "empty header", "long header"],
)
def test_what_is_no_checkpoint_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode_checkpoint(sealed(body))


def test_another_version_is_refused(kept: bytes) -> None:
    (length,) = struct.unpack_from("<I", kept, 32)
    header = kept[36 : 36 + length]
    assert header.count(b"\xa7version\x01") == 1
    newer = header.replace(b"\xa7version\x01", b"\xa7version\x02")
    with pytest.raises(CheckpointError, match="not of version 1"):
        decode_checkpoint(sealed(kept[32:36] + newer + kept[36 + length :]))


def test_vectors_of_another_size_are_refused(kept: bytes) -> None:
    with pytest.raises(CheckpointError, match="do not fit together"):
        decode_checkpoint(sealed(kept[32:] + bytes(4)))


def test_a_state_that_does_not_fit_changes_nothing(trainer: Trainer) -> None:
    manifest, batch = trainer.artifact.manifest, next(draw(trainer.artifact.manifest))
    untouched, run = start(trainer), start(trainer)
    good = run.state()
    wrong_size = {name: value[:-1] for name, value in good.vectors.items()}
    not_finite = good.vectors | {names.EXP_AVG: np.full_like(good.vectors[names.EXP_AVG], np.nan)}
    small = plan_of(manifest, 1, 8)

    def changed(**changes: Any) -> TrainingState:
        fields = {name: getattr(good, name) for name in ("num_steps", "grad_norm", "plan", "vectors", "scores")}
        return TrainingState(**{**fields, **changes})

    cases: list[tuple[type[Exception], TrainingState]] = [
        (TensorError, changed(vectors=wrong_size)),
        (TensorError, changed(vectors=not_finite)),
        (TensorError, changed(plan=small.packed)),
        (PlanError, changed(plan=PackedPlan(groups=()))),
        (TensorError, changed(scores={(0, "heads"): np.ones(2, np.float32)})),
        (PlanError, changed(scores={(9, "heads"): np.ones(2, np.float32)})),
    ]
    for error, state in cases:
        with pytest.raises(error):
            run.restore(state)
    assert run.num_steps == 0
    assert run.step([batch]) == untouched.step([batch])


def test_units_that_are_gone_do_not_come_back_with_a_state(trainer: Trainer) -> None:
    run, full = start(trainer), start(trainer).state()
    run.prune(plan_of(trainer.artifact.manifest, 1, 8))
    with pytest.raises(PlanError, match="cannot bring units back"):
        run.restore(full)
