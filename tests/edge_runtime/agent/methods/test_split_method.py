"""Split tuning on a device: hidden states of the lower blocks, once an example, in the memory of a forward pass."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import NotAllowedError, StoppedError
from edge_runtime.agent.methods.split.method import Split
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.traffic import Traffic
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.bounds import limits
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.activations import Activations, Form, decode_activations
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update, Welcome
from edge_runtime.wire.work import SplitWork
from tests.edge_runtime.agent.methods.runners import BACKWARD, Make

BATCH, LENGTH = 4, 16


def welcome_of(runner: AssignmentRunner) -> Welcome:
    return Welcome(
        run_id="run",
        device_id="board-7",
        artifact_url="http://localhost/",
        artifact_digest=runner.digest,
        arms=(),
        batch_size=BATCH,
        max_length=LENGTH,
        work="split",
    )


def run(runner: AssignmentRunner, *, stop: threading.Event | None = None, **fields: Any) -> tuple[Update, bytes]:
    work = SplitWork(**{"cut": 1, "dtype": "float32", "batch_size": BATCH, "max_length": LENGTH, **fields})
    context = WorkContext(
        welcome=welcome_of(runner),
        stop=stop or threading.Event(),
        progress=Progress(),
        traffic=Traffic(lambda: (0, 0)),
        fetch_s=0.0,
        checkpoints=Checkpoints(Path("nowhere"), 0),
        pauses=Pauses(PauseLimits(), Sensors()),
    )
    key = AssignmentKey(run_id="run", round_number=1, device_id="board-7", attempt=1)
    return runner.run(Assignment(key=key, deadline_s=60.0, work=work), b"", context)


def decoded(runner: AssignmentRunner, update: Update, blob: bytes, dtype: Any = "float32") -> Activations:
    form = Form.of(runner.artifact.manifest, runner.digest, 1, dtype, LENGTH)
    assert len(blob) <= form.num_bytes(update.num_examples, runner.load(LENGTH).tokens.size)
    return decode_activations(blob, form, update.num_examples)


def lower_of(artifact: Artifact) -> tuple[StagedModel, np.ndarray]:
    plan, graphs = Plan.full(artifact.manifest), StagedGraphs(artifact, num_threads=1)
    layout = AdapterLayout.of(artifact.manifest, plan, 1)
    weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
    return graphs.model(weights, layout, 1.0), np.zeros(layout.num_elements, np.float32)


@pytest.mark.parametrize("kind", ["tiny_bert_artifact", "tiny_llama_artifact"])
def test_the_reply_is_the_hidden_states_below_the_cut_and_the_labels(
    make_runner: Make, loaded: list[str], kind: str, request: pytest.FixtureRequest
) -> None:
    runner = make_runner(request.getfixturevalue(kind))
    update, blob = run(runner)
    assert not BACKWARD & set(loaded)
    assert not {names.SCORE_STAGE, names.LAST_BLOCK_STAGE} & set(loaded)
    found, dataset = decoded(runner, update, blob), runner.load(LENGTH)
    assert update.num_examples == len(dataset)
    assert update.train_loss is None
    assert update.evaluation is None
    np.testing.assert_array_equal(found.lengths, dataset.lengths)
    np.testing.assert_array_equal(found.labels, dataset.tokens if dataset.labels is None else dataset.labels)
    model, none = lower_of(runner.artifact)
    for example in range(len(dataset)):
        expected = model.lower(dataset.batch(np.array([example])), none, 1).hidden[0]
        rows = found.rows(dataset.offsets[example], dataset.offsets[example + 1])
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert run(make_runner(request.getfixturevalue(kind)))[1] == blob, "the same bytes whenever it is asked"


def test_a_coding_is_that_of_the_work(make_runner: Make) -> None:
    runner = make_runner()
    exact = decoded(runner, *run(runner))
    coded = decoded(runner, *run(runner, dtype="int8"), dtype="int8")
    rows = exact.rows(0, len(exact.hidden))
    error = np.abs(coded.rows(0, len(rows)) - rows).max(axis=1)
    assert (error <= np.abs(rows).max(axis=1) / 253).all()
    assert error.max() > 0


@pytest.mark.parametrize("cut", [2, 7])
def test_a_cut_that_leaves_no_block_to_the_server_is_refused_before_any_graph_is_loaded(
    make_runner: Make, loaded: list[str], cut: int
) -> None:
    with pytest.raises(TensorError, match=f"the cut is after {cut} blocks, expected 1 to 1"):
        run(make_runner(), cut=cut)
    assert loaded == []


def test_a_device_whose_memory_fits_no_first_order_training_takes_part(make_runner: Make, loaded: list[str]) -> None:
    manifest = make_runner().artifact.manifest
    training = memory.estimate_training_bytes(manifest, Plan.full(manifest), 1, BATCH, LENGTH, "staged")
    dataset = make_runner().load(LENGTH)
    coded = Form.of(manifest, "", 1, "int8", LENGTH).num_bytes(len(dataset), dataset.tokens.size)
    needed = memory.estimate_lower_bytes(manifest, 1, BATCH, LENGTH, coded)
    assert needed < training
    enough = make_runner(memory_limit_bytes=needed)
    enough.check_run(welcome_of(enough))
    run(enough, dtype="int8")
    with pytest.raises(InsufficientMemoryError, match="with activations of all examples, but this device may use"):
        run(make_runner(memory_limit_bytes=needed - 1), dtype="int8")
    loaded.clear()
    small = make_runner(memory_limit_bytes=10**6)
    for refused in (lambda: run(small), lambda: small.check_run(welcome_of(small))):
        with pytest.raises(InsufficientMemoryError, match="blocks below the cut need about"):
            refused()
    assert loaded == []


def test_nothing_is_sent_unless_the_owner_allows_it(make_runner: Make, loaded: list[str]) -> None:
    runner = make_runner(sends_activations=False)
    for refused in (lambda: run(runner), lambda: runner.check_run(welcome_of(runner))):
        with pytest.raises(NotAllowedError, match="start the device with --send-activations if they may leave it"):
            refused()
    assert loaded == []


def test_more_than_a_reply_may_have_is_refused_before_anything_is_computed(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    monkeypatch.setattr(limits, "MAX_BLOB_BYTES", 5000)
    with pytest.raises(TensorError, match=r"activations of \d+ examples are .* choose int8, shorter examples"):
        run(make_runner())
    assert loaded == []


def test_the_work_stops_between_batches(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, original, seen = threading.Event(), StagedModel.lower, []

    def lower(self: StagedModel, *given: Any) -> Any:
        seen.append(given)
        stop.set()
        return original(self, *given)

    monkeypatch.setattr(StagedModel, "lower", lower)
    with pytest.raises(StoppedError):
        run(make_runner(), stop=stop)
    assert len(seen) == 1


def test_weights_above_the_cut_are_not_loaded(make_runner: Make, tiny_llama_artifact: Path) -> None:
    artifact = make_runner(tiny_llama_artifact).artifact
    work = SplitWork(cut=1, dtype="int8", batch_size=BATCH, max_length=LENGTH)
    method = make_runner(tiny_llama_artifact).methods.of(work)
    assert isinstance(method, Split)
    held = set(method.model(1)._weights)
    spec = {tensor.name: tensor for tensor in artifact.manifest.tensors}
    assert {spec[name].layer for name in held} == {None, 0}
    assert {name for name in held if spec[name].layer is None} == {artifact.manifest.word_embedding}
