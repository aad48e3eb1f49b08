"""Tuning of all weights on a device: the scalars of the formula, one copy of the weights, forward graphs alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.methods.zero_order.whole_weights import WholeWeights
from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import batches
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.formats.zero_order import Reply, decode_reply
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update
from edge_runtime.wire.work import Arm, SeedPoolWork
from edge_runtime.zero_order.noise import quantiles
from edge_runtime.zero_order.pool import Direction, device_number, seeds_of_step
from tests.edge_runtime.agent.methods.runners import BACKWARD, Make
from tests.edge_runtime.agent.methods.zero_order_work import context_of, welcome_of
from tests.edge_runtime.agent.test_assignment_runner import StopAfter
from tests.replies import loss_of

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]
NUM_SEEDS = 6


def work_of(**fields: Any) -> SeedPoolWork:
    coefficients = np.array([0, 2e-3, 0, -1e-3, 0, 5e-4], "<f4")
    fields = {"noise": "rademacher", "coefficients": coefficients.tobytes(), **fields}
    pool = SeedPool(seed=7, noise=fields.pop("noise"), coefficients=fields.pop("coefficients"))
    return SeedPoolWork(
        **{
            "arm": Arm(pruning_ratio=0.0, rank=2),
            "pool": pool,
            "learning_rate": 1e-3,
            "num_perturbations": 2,
            "num_local_steps": 3,
            "epsilon": 1e-2,
            "batch_size": 4,
            "max_length": 16,
            **fields,
        }
    )


def head(artifact: Artifact) -> bytes:
    rng = np.random.default_rng(3)
    tensors = {spec.name: rng.normal(0, 0.2, spec.shape).astype(np.float32) for spec in artifact.manifest.dense}
    return encode_payload(Payload(adapter=tensors))


def assignment_of(blob: bytes, work: SeedPoolWork, round_number: int = 2) -> Assignment:
    key = AssignmentKey(run_id="run", round_number=round_number, device_id="board-7", attempt=1)
    return Assignment(key=key, deadline_s=60.0, payload=chunks.describe(blob), work=work)


def run(runner: AssignmentRunner, work: SeedPoolWork, **context: Any) -> tuple[Update, Reply]:
    blob = head(runner.artifact)
    update, made = runner.run(assignment_of(blob, work), blob, context_of(runner, **context))
    return update, decode_reply(made, (work.num_local_steps, work.num_perturbations))


class Reference:
    """Whole models made tensor by tensor, the noise taken bit by bit from the generator."""

    def __init__(self, runner: AssignmentRunner, work: SeedPoolWork) -> None:
        self.artifact, self.work = runner.artifact, work
        manifest = self.artifact.manifest
        self.graphs = StagedGraphs(self.artifact, num_threads=1)
        self.layout = AdapterLayout.of(manifest, Plan.full(manifest), 1)
        rng = np.random.default_rng(3)
        start = {spec.name: np.array(self.artifact.weight(spec)) for spec in manifest.tensors}
        self.dense = [spec.name for spec in manifest.dense]
        start |= {spec.name: rng.normal(0, 0.2, spec.shape).astype(np.float32) for spec in manifest.dense}
        self.order = list(start)
        coefficients = np.frombuffer(work.pool.coefficients, "<f4")
        self.theta = self.less(start, [(j, coefficient) for j, coefficient in enumerate(coefficients)])

    def noise(self, name: str, seed: int, shape: tuple[int, ...]) -> Array:
        counter, size = np.array([0, seed, 0, 0], np.uint64), int(np.prod(shape))
        raw = np.random.Philox(key=np.array([7, self.order.index(name)], np.uint64), counter=counter)
        if self.work.pool.noise == "gaussian":
            places = [int(number) >> 16 * i & 0xFFFF for number in raw.random_raw(-(-size // 4)) for i in range(4)]
            return quantiles()[places[:size]].reshape(shape)
        bits = [int(number) >> i & 1 for number in raw.random_raw(-(-size // 64)) for i in range(64)]
        return (2 * np.array(bits[:size], np.float32) - 1).reshape(shape)

    def less(self, tensors: Tensors, weights: list[tuple[int, Any]]) -> Tensors:
        out: Tensors = {}
        for name, value in tensors.items():
            total = np.zeros(value.shape, np.float32)
            for seed, weight in weights:
                total += np.float32(weight) * self.noise(name, seed, value.shape)
            out[name] = value - total
        return out

    def loss(self, tensors: Tensors, batch: Any) -> float:
        weights = FrozenWeights({name: value for name, value in tensors.items() if name not in self.dense})
        factors = {name: np.zeros(shape, np.float32) for name, shape in self.layout.shapes.items()}
        params = self.layout.flatten({**factors, **{name: tensors[name] for name in self.dense}})
        loss_sum, _ = self.graphs.model(weights, self.layout, 1.0).score(batch, params)
        return loss_sum / int(batch.num_targets)

    def step(self, batch: Any, step: int) -> Array:
        work, eps = self.work, self.work.epsilon
        seeds = seeds_of_step(7, device_number("board-7"), 2, step, NUM_SEEDS, work.num_perturbations)
        rho = np.zeros(len(seeds), np.float32)
        for place, seed in enumerate(seeds):
            plus, minus = (self.loss(self.less(self.theta, [(seed, sign * eps)]), batch) for sign in (-1, 1))
            rho[place] = (plus - minus) / (2 * eps)
        if work.largest_scalar is not None:
            rho = np.clip(rho, np.float32(-work.largest_scalar), np.float32(work.largest_scalar))
        rate = np.float32(work.learning_rate / len(seeds))
        self.theta = self.less(self.theta, [(seed, value * rate) for seed, value in zip(seeds, rho, strict=True)])
        return rho


def reference(runner: AssignmentRunner, work: SeedPoolWork) -> Array:
    made, dataset = Reference(runner, work), runner.load(work.max_length)
    drawn = batches(dataset, work.batch_size, np.random.default_rng([7, 2]))
    return np.stack([made.step(next(drawn), step) for step in range(1, work.num_local_steps + 1)])


@pytest.mark.parametrize(
    "fields", [{}, {"noise": "gaussian"}, {"num_perturbations": 1}, {"largest_scalar": 0.05}], ids=str
)
def test_the_scalars_are_those_of_the_formula_to_the_last_bit(make_runner: Make, fields: dict[str, Any]) -> None:
    runner, work = make_runner(), work_of(**fields)
    update, reply = run(runner, work)
    np.testing.assert_array_equal(reply.scalars, reference(runner, work))
    assert np.abs(reply.scalars).min() > 0
    assert reply.num_not_finite == 0
    assert update.inline
    assert update.evaluation is not None
    assert np.isfinite(loss_of(update))


def test_a_language_model_with_a_tied_embedding_is_tuned_whole(make_runner: Make, tiny_llama_artifact: Path) -> None:
    runner, work = make_runner(tiny_llama_artifact), work_of()
    _, reply = run(runner, work)
    np.testing.assert_array_equal(reply.scalars, reference(runner, work))


def test_the_server_evaluates_the_weights_that_the_device_starts_from(make_runner: Make) -> None:
    artifact, pool = make_runner().artifact, work_of().pool
    sliced = slice_weights(artifact, Plan.full(artifact.manifest), pool=pool)
    weights = WholeWeights(artifact, Direction.of(pool), lambda: None)
    embedding = artifact.manifest.word_embedding
    tokens = np.arange(len(sliced[embedding]))
    theta = {**weights.theta, embedding: weights.table(embedding, tokens)[0]}
    assert theta.keys() == set(sliced)
    assert all(theta[name].tobytes() == sliced[name].tobytes() for name in sliced)
    assert all(
        np.abs(value - artifact.weight(spec)).min() > 0
        for spec in artifact.manifest.tensors
        for value in [theta[spec.name]]
    )


def test_rows_that_are_looked_up_late_have_moved_as_the_others(make_runner: Make) -> None:
    """Whatever was kept before a move, and in which order."""
    artifact, pool = make_runner().artifact, work_of().pool
    embedding, found = artifact.manifest.word_embedding, []
    moves = [Direction(pool.seed, pool.noise, [(number, 0.25)]) for number in (1, 3)]
    for early in ([], [2, 5, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]):
        weights = WholeWeights(artifact, Direction.of(pool), lambda: None)
        for number, move in enumerate(moves):
            weights.table(embedding, np.array(early[number:], np.int64))
            weights.move(move)
        weights.read_less(Direction(pool.seed, pool.noise, [(2, 0.5)]))
        rows, indices = weights.table(embedding, np.array([[9, 3], [5, 3]]))
        assert indices.tolist() == [[2, 0], [1, 0]]
        found.append(rows.tobytes())
    assert len(set(found)) == 1


def test_many_steps_lower_the_loss(make_runner: Make) -> None:
    work = work_of(num_local_steps=60, learning_rate=3e-4, num_perturbations=4, batch_size=20)
    update, _ = run(make_runner(), work)
    assert update.evaluation is not None
    assert update.evaluation.loss_after < update.evaluation.loss_before


def test_a_process_that_stops_goes_on_to_the_same_scalars(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    work, passes = work_of(), [0]
    _, expected = run(make_runner(methods=None), work)
    original = StagedModel.score

    class KilledError(BaseException):
        """In place of a kill -9."""

    def score(self: StagedModel, *arguments: Any) -> tuple[float, int]:
        passes[0] += 1
        if passes[0] == 7 + 4:
            raise KilledError
        return original(self, *arguments)

    monkeypatch.setattr(StagedModel, "score", score)
    with pytest.raises(KilledError):
        run(make_runner(), work)
    passes[0] = 100
    _, reply = run(make_runner(), work)
    np.testing.assert_array_equal(reply.scalars, expected.scalars)


def test_no_graph_but_forward_ones_is_loaded(make_runner: Make, loaded: list[str]) -> None:
    run(make_runner(), work_of())
    assert loaded
    assert not BACKWARD & set(loaded)


def test_weights_are_there_once(make_runner: Make) -> None:
    """Beside them a block's worth, pieces of noise, and what is outside of the blocks; of the word embedding a row."""
    artifact = make_runner().artifact
    manifest = artifact.manifest
    sizes = {spec.name: 4 * int(np.prod(spec.shape)) for spec in manifest.tensors}
    blocks = [sum(sizes[s.name] for s in manifest.tensors if s.layer == n) for n in range(manifest.num_layers)]
    outside = sum(sizes[s.name] for s in manifest.tensors if s.layer is None and s.name not in manifest.looked_up)
    tracemalloc.start()
    weights = WholeWeights(artifact, Direction(7, "rademacher", [(1, 0.5)]), lambda: None)
    weights.read_less(Direction(7, "rademacher", [(1, 0.5), (3, 0.1)]))
    weights.move(Direction(7, "rademacher", [(1, 0.5), (3, 0.1)]))
    weights.table(manifest.word_embedding, np.array([[3]]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(blocks) > 1
    assert weights.theta.keys() == sizes.keys() - {manifest.word_embedding}
    assert peak < sum(sizes.values()) - sizes[manifest.word_embedding] + outside + 8 * 2**17


def test_blocks_are_written_anew_before_each_pass(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model of one block would go on with the weights of the pass before."""
    order: list[str] = []
    for name in ("convert_again", "score"):
        original = getattr(StagedModel, name)

        def spy(self: StagedModel, *arguments: Any, name: str = name, original: Any = original) -> Any:
            order.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(StagedModel, name, spy)
    run(make_runner(), work_of(num_local_steps=1))
    passes = order[: 2 * 2 * 2 + 2]
    assert passes == ["convert_again", "score"] * 5, "one evaluation, and both sides of two seeds"


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_weights_in_few_bits_are_refused_before_the_first_assignment(make_runner: Make) -> None:
    runner = make_runner()
    first, *others = runner.artifact.manifest.tensors
    tensors = (msgspec.structs.replace(first, dtype="int8"), *others)
    runner.artifact.manifest = msgspec.structs.replace(runner.artifact.manifest, tensors=tensors)
    welcome = msgspec.structs.replace(welcome_of(runner), work="seed_pool")
    with pytest.raises(TensorError, match="is stored as int8, and all weights are to be tuned: export with float32"):
        runner.check_run(welcome)
    with pytest.raises(TensorError, match="is stored as int8"):
        run(runner, work_of())


def test_a_device_without_the_memory_says_so(make_runner: Make) -> None:
    with pytest.raises(InsufficientMemoryError, match=r"tuning all weights needs about .* raise --memory-limit"):
        run(make_runner(memory_limit_bytes=10**6), work_of())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"epsilon": 1e-9}, "epsilon 1e-09 is lost in float32"),
        ({"coefficients": np.array([np.nan], "<f4").tobytes()}, "coefficients that are not finite"),
        ({"num_local_steps": 2**20, "num_perturbations": 2}, "at most 24576 go into one round"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(make_runner: Make, fields: dict[str, Any], line: str) -> None:
    assert limits.MAX_MESSAGE_BYTES // 4 == 24_576
    with pytest.raises(TensorError, match=line):
        run(make_runner(), work_of(**fields))


def test_a_payload_that_is_not_the_head_is_refused(make_runner: Make) -> None:
    runner, work = make_runner(), work_of()
    for tensors in ({}, {"other": np.zeros(3, np.float32)}):
        blob = encode_payload(Payload(adapter=tensors))
        with pytest.raises(TensorError, match="a payload to tune all weights from holds"):
            runner.run(assignment_of(blob, work), blob, context_of(runner))


def test_a_stopped_device_stops_between_passes(make_runner: Make) -> None:
    stop = StopAfter(3)
    with pytest.raises(Exception, match="stop"):
        run(make_runner(), work_of(), stop=stop)
