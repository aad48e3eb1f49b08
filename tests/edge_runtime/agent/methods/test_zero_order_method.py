"""Zero-order tuning on a device: the scalars of the formula, by forward graphs alone, in two copies of theta."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.jobs import Jobs
from edge_runtime.agent.methods.zero_order.kept import Kept
from edge_runtime.agent.methods.zero_order.ways import Ways
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.bounds import limits
from edge_runtime.engine.dataset import batches
from edge_runtime.engine.errors import DivergedError, InsufficientMemoryError
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.logged_rounds import PreconditionerStart
from edge_runtime.wire.work import Arm, ZeroOrderWork
from edge_runtime.zero_order.noise import quantiles
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner
from tests.edge_runtime.agent.methods.runners import BACKWARD, Make
from tests.edge_runtime.agent.methods.zero_order_work import (
    assignment_of,
    context_of,
    payload,
    rounds_of,
    run,
    welcome_of,
    work_of,
)
from tests.replies import loss_of

Array = npt.NDArray[np.float32]

H = PreconditionerStart(round_number=2, lower=4.0, upper=0.5)
FORMS: dict[str, dict[str, Any]] = {
    "mezo": {"num_outer": 1, "num_inner": 1, "lower_learning_rate": 5e-3},
    "decomfl": {"num_outer": 3, "num_inner": 1, "lower_learning_rate": 5e-3},
    "fedspzo": {"num_outer": 2, "num_inner": 3},
    "topzo": {"num_outer": 1, "num_inner": 4, "lower_learning_rate": 0.0},
    "all above": {"cut": 0},
    "head alone above": {"cut": 2},
    "cut off": {"largest_scalar": 0.05},
    "normalised": {"is_normalised": True, "learning_rate": 1e-3},
    "normalised topzo": {
        "is_normalised": True,
        "lower_learning_rate": 0.0,
        "num_outer": 1,
        "num_inner": 4,
    },
    "gaussian": {"noise": "gaussian"},
    "preconditioned": {"preconditioner": H, "log": rounds_of(work_of(), (2, 3), cut=1, preconditioner=H)},
}


class Reference:
    """Steps computed from the formulas, tensor by tensor, with whole passes through a model of its own.

    Noise is taken bit by bit from the generator; nothing here is of ``zero_order`` but a preconditioner's diagonal.
    """

    def __init__(self, runner: AssignmentRunner, work: ZeroOrderWork, blob: bytes) -> None:
        self.work = work
        artifact = runner.artifact
        plan, graphs = Plan.full(artifact.manifest), StagedGraphs(artifact, num_threads=1)
        self.layout = AdapterLayout.of(artifact.manifest, plan, work.arm.rank)
        weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
        self.model = graphs.model(weights, self.layout, work.lora_scaling)
        self.theta = {name: value.copy() for name, value in decode_payload(blob).adapter.items()}
        layers = {names.lora_b(target.module): target.layer for target in artifact.manifest.targets}
        tuned = [name for name in self.layout.shapes if not names.is_lora_a(name)]
        self.lower = [name for name in tuned if layers.get(name, work.cut) < work.cut]
        self.upper = [name for name in tuned if name not in self.lower]
        scale = np.ones(self.layout.num_elements, np.float32)
        if work.preconditioner is not None:
            parts = TunedParts.of(artifact.manifest, work.arm.rank, work.cut)
            scale = Preconditioner.after(parts, work.seed, work.log, work.preconditioner).scale
            assert np.unique(scale).size > 2
        self.scale = self.layout.unflatten(scale)

    def noise(self, name: str, step: int, perturbation: int) -> Array:
        tensor, shape = list(self.layout.shapes).index(name), self.layout.shapes[name]
        counter = np.array([0, perturbation, step, 1], np.uint64)
        raw = np.random.Philox(key=np.array([self.work.seed, tensor], np.uint64), counter=counter)
        size = int(np.prod(shape))
        if self.work.noise == "gaussian":
            places = [int(number) >> 16 * i & 0xFFFF for number in raw.random_raw(-(-size // 4)) for i in range(4)]
            return quantiles()[places[:size]].reshape(shape)
        numbers = [int(number) for number in raw.random_raw(-(-size // 64))]
        bits = [numbers[i // 64] >> i % 64 & 1 for i in range(size)]
        return np.array([1.0 if bit else -1.0 for bit in bits], np.float32).reshape(shape)

    def loss(self, batch: Any, sign: int, outer: int, inner: int, step: int) -> float:
        eps, moved = np.float32(sign * self.work.epsilon), dict(self.theta)
        numbers = dict.fromkeys(self.upper, outer * self.work.num_inner + inner)
        numbers |= dict.fromkeys(self.lower if self.work.lower_learning_rate else [], outer)
        for name, number in numbers.items():
            moved[name] = self.theta[name] + eps * (self.noise(name, step, number) * self.scale[name])
        loss_sum, _ = self.model.score(batch, self.layout.flatten(moved))
        return loss_sum / int(batch.num_targets)

    def step(self, batch: Any, step: int) -> Array:
        work = self.work
        rho = np.zeros((work.num_outer, work.num_inner), np.float32)
        for p, j in np.ndindex(rho.shape):
            other = self.loss(batch, 0 if work.is_normalised else -1, p, j, step)
            rho[p, j] = (self.loss(batch, 1, p, j, step) - other) / ((1 if work.is_normalised else 2) * work.epsilon)
        if work.largest_scalar is not None:
            rho = np.clip(rho, np.float32(-work.largest_scalar), np.float32(work.largest_scalar))
        spread = float(rho.astype(np.float64).std()) if work.is_normalised else 1.0
        for name in self.upper:
            total = np.zeros(self.layout.shapes[name], np.float32)
            for p, j in np.ndindex(rho.shape):
                total += rho[p, j] * self.noise(name, step, p * work.num_inner + j)
            self.theta[name] -= np.float32(work.learning_rate / rho.size / spread) * (total * self.scale[name])
        for name in self.lower if work.lower_learning_rate else []:
            total = np.zeros(self.layout.shapes[name], np.float32)
            for p in range(work.num_outer):
                mean = np.float32(0)
                for j in range(work.num_inner):
                    mean += rho[p, j]
                total += mean / np.float32(work.num_inner) * self.noise(name, step, p)
            self.theta[name] -= np.float32(work.lower_learning_rate / work.num_outer / spread) * (
                total * self.scale[name]
            )
        return rho


def reference(runner: AssignmentRunner, work: ZeroOrderWork, blob: bytes) -> Array:
    """All scalars, float32 ``[K, P1 * P2]``."""
    made, dataset = Reference(runner, work, blob), runner.load(work.max_length)
    drawn = batches(dataset, work.batch_size, np.random.default_rng([work.seed, 1]))
    return np.stack([made.step(next(drawn), step).ravel() for step in range(1, work.num_local_steps + 1)])


def pass_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ways, "group_size", lambda _ways, _num_tokens, count: min(3, count))
    monkeypatch.setattr(Ways, "is_by_block", lambda _: True)


@pytest.mark.parametrize("is_by_block", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_scalars_are_those_of_the_formula_to_the_last_bit(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch, form: str, *, is_by_block: bool
) -> None:
    if is_by_block:
        pass_by_block(monkeypatch)
    runner, work = make_runner(), work_of(**FORMS[form])
    blob = payload(runner.artifact.manifest)
    expected = reference(runner, work, blob)
    update, reply = run(runner, assignment_of(blob, work), blob)
    np.testing.assert_array_equal(reply.scalars, expected)
    assert np.abs(expected).min() > 0
    assert (np.abs(expected).max() == np.float32(0.05)) == (form == "cut off")
    assert reply.num_not_finite == 0
    assert np.isfinite(loss_of(update))
    assert update.evaluation is not None
    assert update.evaluation.num_targets == 4


@pytest.mark.parametrize("is_by_block", [False, True])
def test_a_language_model_is_tuned_by_its_next_tokens(
    make_runner: Make, tiny_llama_artifact: Path, monkeypatch: pytest.MonkeyPatch, *, is_by_block: bool
) -> None:
    if is_by_block:
        pass_by_block(monkeypatch)
    runner, work = make_runner(tiny_llama_artifact), work_of()
    blob = payload(runner.artifact.manifest)
    update, reply = run(runner, assignment_of(blob, work), blob)
    np.testing.assert_array_equal(reply.scalars, reference(runner, work, blob))
    assert loss_of(update) > 1


def test_many_steps_lower_the_loss(make_runner: Make) -> None:
    """Forward passes alone learn something: the test would pass with no other sign of the step."""
    runner = make_runner()
    work = work_of(num_local_steps=60, learning_rate=5e-3, lower_learning_rate=1e-3, num_inner=4, batch_size=20)
    blob = payload(runner.artifact.manifest)
    update, _ = run(runner, assignment_of(blob, work), blob)
    assert update.evaluation is not None
    assert update.evaluation.loss_after < 0.9 * update.evaluation.loss_before


def test_what_is_kept_after_a_round_is_theta_at_its_start(make_runner: Make, tmp_path: Path) -> None:
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    run(runner, assignment_of(blob, work_of(), 5), blob, pull_rate=123.0)
    start = Kept(tmp_path / "methods" / "zero_order").load_start("run")
    assert start is not None
    assert (start.payload, start.round_number, start.pull_rate) == (blob, 5, 123.0)
    again = run(make_runner(), assignment_of(start.payload, work_of(), 5), start.payload)
    assert again[1].scalars.tobytes() == run(runner, assignment_of(blob, work_of(), 5), blob)[1].scalars.tobytes()


def test_no_graph_but_forward_ones_is_loaded(make_runner: Make, loaded: list[str]) -> None:
    runner = make_runner()
    runner.check_run(welcome_of(runner))
    blob = payload(runner.artifact.manifest)
    run(runner, assignment_of(blob, work_of()), blob)
    assert names.SCORE_STAGE in loaded
    assert not BACKWARD & set(loaded)
    assert names.EVALUATION_GRAPH not in loaded


def test_theta_is_there_twice_at_most(make_runner: Make) -> None:
    """Rank 512: theta is 1.5 MB, and all else of the tiny model is little beside it."""
    runner, rank = make_runner(), 512
    work = work_of(arm=Arm(pruning_ratio=0.0, rank=rank), num_local_steps=1)
    blob = payload(runner.artifact.manifest, rank=rank)
    runner.load(work.max_length)
    assignment, context = assignment_of(blob, work), context_of(runner)
    runner.run(assignment, blob, context)  # what is loaded once is not counted
    tracemalloc.start()
    runner.run(assignment, blob, context)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(blob) > 1_400_000
    assert 1.9 * len(blob) < peak < 2.3 * len(blob)


class Watched(bytes):
    """Bytes that say when they are gone."""

    num_gone = 0

    def __del__(self) -> None:
        Watched.num_gone += 1


def test_the_payload_is_let_go_before_the_first_pass(
    make_runner: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, seen = make_runner(), list[int]()
    original = StagedModel.lower

    def lower(self: StagedModel, *arguments: Any) -> Any:
        seen.append(Watched.num_gone)
        return original(self, *arguments)

    monkeypatch.setattr(StagedModel, "lower", lower)
    blob, context = payload(runner.artifact.manifest), context_of(runner)
    before = Watched.num_gone
    assignment, welcome = assignment_of(blob, work_of(num_local_steps=1)), welcome_of(runner)
    jobs = Jobs(
        tmp_path,
        WorkSettings(data=tmp_path, num_holdout=0, num_threads=1, memory_limit_bytes=0),
        context.traffic,
        context.checkpoints,
    )
    jobs.work(runner, assignment, (Watched(blob), 0.0), None, welcome, context.progress)
    assert jobs.join(60)
    assert (ended := jobs.poll()) is not None
    assert isinstance(ended.outcome, tuple), ended.outcome
    assert seen
    assert set(seen) == {before + 1}


# ---- losses that are no numbers ----------------------------------------------------------------------------------


def test_a_scalar_that_is_not_finite_is_zero_and_counted(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work = make_runner(), work_of(num_local_steps=1)
    blob = payload(runner.artifact.manifest)
    _, expected = run(runner, assignment_of(blob, work), blob)
    original, calls = StagedModel.upper, [0]

    def upper(self: StagedModel, *arguments: Any) -> tuple[float, int]:
        calls[0] += 1
        loss, correct = original(self, *arguments)
        return (np.inf if calls[0] == 2 else np.nan if calls[0] == 9 else loss), correct

    monkeypatch.setattr(StagedModel, "upper", upper)  # plus of (0, 1), minus of (0, 2)
    update, reply = run(runner, assignment_of(blob, work), blob)
    zeroed = expected.scalars.copy()
    zeroed[0, [1, 2]] = 0
    np.testing.assert_array_equal(reply.scalars, zeroed)
    assert reply.num_not_finite == 2
    assert np.isfinite(loss_of(update))


def test_where_no_loss_is_finite_the_work_has_diverged(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    monkeypatch.setattr(StagedModel, "upper", lambda *_: (np.nan, 0))
    with pytest.raises(DivergedError, match="lower the learning rate"):
        run(runner, assignment_of(blob, work_of()), blob)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_any_graph_is_loaded(
    make_runner: Make, loaded: list[str], tmp_path: Path
) -> None:
    small, runner = make_runner(memory_limit_bytes=10**6), make_runner()
    manifest = runner.artifact.manifest
    blob = payload(manifest)
    for refused in (
        lambda: run(small, assignment_of(blob, work_of()), blob),
        lambda: small.check_run(welcome_of(small)),
    ):
        with pytest.raises(InsufficientMemoryError, match="forward passes need about"):
            refused()
    merged = {
        t.module: (np.zeros((1, t.in_features), np.float32), np.zeros((t.out_features, 1), np.float32))
        for t in manifest.targets[:1]
    }
    with_merged = encode_payload(Payload(adapter=decode_payload(blob).adapter, merged=merged))
    large = encode_payload(Payload(adapter={n: v * np.float32(1e6) for n, v in decode_payload(blob).adapter.items()}))
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (blob, {"cut": 3}, "the cut is 3, expected 0 to 2"),
        (blob, {"num_inner": limits.MAX_MESSAGE_BYTES}, "scalars, at most 24576"),
        (blob, {"epsilon": 1e-9}, "lost in float32"),
        (large, {}, "lost in float32"),
        (blob, {"arm": Arm(pruning_ratio=0.0, rank=3)}, "has shape"),
        (with_merged, {}, "merged factors"),
        (b"", {}, "too short"),
    ]
    for given, fields, why in cases:
        with pytest.raises(TensorError, match=why):
            run(runner, assignment_of(given or b"-", work_of(**fields)), given)
    assert loaded == []
    assert not list((tmp_path / "methods" / "zero_order").iterdir())


def test_a_decoder_has_nothing_above_its_last_block(make_runner: Make, tiny_llama_artifact: Path) -> None:
    runner = make_runner(tiny_llama_artifact)
    blob = payload(runner.artifact.manifest)
    with pytest.raises(TensorError, match="choose a lower cut"):
        run(runner, assignment_of(blob, work_of(cut=2)), blob)
