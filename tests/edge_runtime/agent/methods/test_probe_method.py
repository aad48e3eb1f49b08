"""The probe on a device: features of the model, computed once; exact heads and sums; no backward graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.methods.probe import feature_store
from edge_runtime.agent.methods.probe.softmax import Examples, Regression, evaluate
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.traffic import Traffic
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import DivergedError, InsufficientMemoryError
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.head import Head
from edge_runtime.formats.plan import KeptUnits, PackedPlan, Plan
from edge_runtime.formats.probe import decode_head, decode_statistics, encode_head, sum_features
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update, Welcome
from edge_runtime.wire.work import ProbeWork
from tests.edge_runtime.agent.methods.runners import BACKWARD, Make
from tests.edge_runtime.agent.stage import EXAMPLES


def welcome_of(runner: AssignmentRunner) -> Welcome:
    return Welcome(
        run_id="run",
        device_id="board-7",
        artifact_url="http://localhost/",
        artifact_digest=runner.digest,
        arms=(),
        batch_size=4,
        max_length=16,
        work="probe",
    )


def run(runner: AssignmentRunner, *, stop: threading.Event | None = None, **fields: Any) -> tuple[Update, bytes]:
    manifest = runner.artifact.manifest
    head = Head.of(manifest)
    weight = np.zeros((head.num_classes, head.num_features), np.float32)
    blob = fields.pop("blob", None)
    if blob is None:
        blob = encode_head(head, {head.weight: weight, head.bias: weight[:, 0]})
    work = ProbeWork(
        **{
            "plan": Plan.full(manifest).packed,
            "form": "softmax",
            "batch_size": 4,
            "max_length": 16,
            "num_steps": 40,
            **fields,
        }
    )
    context = WorkContext(
        welcome=welcome_of(runner),
        stop=stop or threading.Event(),
        progress=Progress(),
        traffic=Traffic(lambda: (0, 0)),
        fetch_s=0.0,
        checkpoints=Checkpoints(Path("nowhere"), 0),
        pauses=Pauses(PauseLimits(), Sensors()),
    )
    assignment = Assignment(
        key=AssignmentKey(run_id="run", round_number=1, device_id="board-7", attempt=1),
        deadline_s=60.0,
        payload=chunks.describe(blob),
        work=work,
    )
    return runner.run(assignment, blob, context)


def model_of(artifact: Artifact, plan: Plan) -> StagedModel:
    graphs = StagedGraphs(artifact, num_threads=1)
    weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
    return graphs.model(weights, AdapterLayout.of(artifact.manifest, plan, 1), 1.0)


def test_features_are_what_enters_the_classifier(make_runner: Make, tiny_bert_model: Path) -> None:
    runner = make_runner()
    dataset = runner.load(16)
    batch = dataset.batch(np.arange(6))
    bert = transformers.BertForSequenceClassification.from_pretrained(tiny_bert_model).eval()
    with torch.no_grad():
        expected = bert.bert(
            input_ids=torch.from_numpy(batch.input_ids), attention_mask=torch.from_numpy(batch.attention_mask)
        ).pooler_output.numpy()
    found = model_of(runner.artifact, Plan.full(runner.artifact.manifest)).features([batch])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_of_examples_of_one_length_do_not_depend_on_their_neighbours(make_runner: Make) -> None:
    runner = make_runner()
    dataset = runner.load(16)
    model = model_of(runner.artifact, Plan.full(runner.artifact.manifest))
    same = np.flatnonzero(dataset.lengths == dataset.lengths[0])
    (together,) = model.features([dataset.batch(same)])
    for place, index in enumerate(same):
        (twice,) = model.features([dataset.batch(np.array([index, index]))])
        np.testing.assert_array_equal(twice[0], together[place])


def test_batches_pass_each_block_together_and_it_is_converted_once(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    dataset, manifest = runner.load(16), runner.artifact.manifest
    weights = slice_weights(runner.artifact, Plan.full(manifest))
    matrices = [t.name for t in manifest.tensors if t.layer is not None and len(t.shape) == 2]
    for name in matrices:
        weights.put(name, weights[name].astype(np.float16))
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 1)
    model = StagedGraphs(runner.artifact, num_threads=1).model(weights, layout, 1.0)
    taken = [dataset.batch(np.array(rows)) for rows in ([0, 1], [2, 3, 4], [5, 6])]
    assert len({batch.input_ids.shape for batch in taken}) > 1
    alone = [model.features([batch])[0] for batch in taken]
    written: list[str] = []
    original = FrozenWeights.write

    def write(self: FrozenWeights, name: str, out: Any) -> None:
        written.append(name)
        original(self, name, out)

    monkeypatch.setattr(FrozenWeights, "write", write)
    together = model.features(taken)
    assert sorted(written) == sorted(matrices)
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_head_is_trained_without_a_backward_graph(make_runner: Make, loaded: list[str]) -> None:
    runner = make_runner()
    runner.check_run(welcome_of(runner))
    update, blob = run(runner)
    head = decode_head(blob, Head.of(runner.artifact.manifest))
    assert loaded
    assert not BACKWARD & set(loaded)
    assert (update.blob, update.inline) == (None, blob), "it is small"
    assert update.num_examples == len(runner.load(16))
    assert update.evaluation is not None
    assert update.evaluation.loss_after < update.evaluation.loss_before == pytest.approx(np.log(3))
    assert np.abs(head["classifier.weight"]).max() > 0


def test_sums_are_those_of_the_features(make_runner: Make, loaded: list[str]) -> None:
    runner = make_runner()
    update, blob = run(runner, form="statistics")
    dataset = runner.load(16)
    assert dataset.labels is not None
    model = model_of(runner.artifact, Plan.full(runner.artifact.manifest))
    features = np.stack([model.features([dataset.batch(np.array([i, i]))])[0][0] for i in range(len(dataset))])
    expected = sum_features(features, dataset.labels, 3)
    sums = decode_statistics(blob, Head.of(runner.artifact.manifest))
    np.testing.assert_array_equal(sums.gram, expected.gram)
    np.testing.assert_array_equal(sums.cross, expected.cross)
    assert sums.num_examples == update.num_examples
    assert update.train_loss == pytest.approx(np.log(3))
    assert not BACKWARD & set(loaded)


def test_features_are_computed_once_also_by_later_processes(make_runner: Make, loaded: list[str]) -> None:
    first = run(make_runner())
    loaded.clear()
    again = run(make_runner())
    assert loaded == []
    assert again[1] == first[1]


def test_a_new_example_alone_is_computed(make_runner: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(make_runner())
    more = [*EXAMPLES, '{"text": "the green cat sings the red", "label": "green"}']
    (tmp_path / "data.jsonl").write_text("\n".join(more))
    seen: list[int] = []
    original = StagedModel.features

    def features(self: StagedModel, batches: Any, before_block: Any) -> Any:
        seen.extend(len(batch.labels) for batch in batches)
        return original(self, batches, before_block)

    monkeypatch.setattr(StagedModel, "features", features)
    run(make_runner())
    assert seen == [2]  # itself, twice


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"\1" + data[1:], lambda _: b""])
def test_damaged_features_are_computed_again(
    make_runner: Make, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = run(make_runner())
    (file,) = (tmp_path / "methods" / "probe").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert run(make_runner())[1] == expected
    assert "is damaged, its features are computed again" in caplog.text
    assert file.read_bytes() == whole


def test_what_features_depend_on_keeps_them_apart_and_the_oldest_make_room(
    make_runner: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for max_length in range(4, 10):
        run(make_runner(), max_length=max_length)
    files = list((tmp_path / "methods" / "probe").iterdir())
    assert len(files) == feature_store.MAX_FILES
    monkeypatch.setattr(feature_store, "MAX_BYTES", 100)
    run(make_runner(), max_length=10)
    assert set((tmp_path / "methods" / "probe").iterdir()) == set(files)


def test_a_stop_keeps_the_features_that_were_computed(
    make_runner: Make, monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    stop = threading.Event()
    seen: list[int] = []
    original = StagedModel.features

    def features(self: StagedModel, batches: Any, before_block: Any) -> Any:
        if seen and not stop.is_set():
            stop.set()  # which is seen before the next block
        else:
            seen.append(sum(len(batch.labels) for batch in batches) // 2)  # each example is there twice
        return original(self, batches, before_block)

    monkeypatch.setattr(memory, "FEATURE_BATCHES", 1)
    monkeypatch.setattr(StagedModel, "features", features)
    with pytest.raises(StoppedError):
        run(make_runner(), stop=stop, batch_size=1)
    run(make_runner(), batch_size=1)
    num_unique = len(set(feature_store.digests_of(make_runner().load(16))))
    assert len(seen) > 2
    assert sum(seen) == num_unique
    assert not BACKWARD & set(loaded)


def test_what_does_not_fit_is_refused_before_any_graph_is_loaded(make_runner: Make, loaded: list[str]) -> None:
    small = make_runner(memory_limit_bytes=10**6)
    for refused in (lambda: run(small), lambda: small.check_run(welcome_of(small))):
        with pytest.raises(InsufficientMemoryError, match="features need about"):
            refused()
    runner = make_runner()
    with pytest.raises(TensorError, match="other tensors"):
        run(runner, blob=names_only())
    other = PackedPlan(groups=(KeptUnits(layer=7, group="heads", num_units=1, bitmap=b"\1"),))
    with pytest.raises(PlanError):
        run(runner, plan=other)
    assert loaded == []


def names_only() -> bytes:
    return encode_head(
        Head(weight="w", bias="b", num_classes=1, num_features=1),
        {"w": np.zeros((1, 1), np.float32), "b": np.zeros(1, np.float32)},
    )


def test_a_language_model_has_no_head_to_train(make_runner: Make, tiny_llama_artifact: Path) -> None:
    runner = make_runner(tiny_llama_artifact)
    with pytest.raises(TensorError, match="choose a method that trains LoRA factors"):
        runner.check_run(welcome_of(runner))


# ---- the regression --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 300)
SOME = Examples(
    features=(RNG.normal(size=(300, 6)) + 0.5 * np.eye(3, 6)[LABELS]).astype(np.float32) * 20, labels=LABELS
)
ZERO = np.zeros((3, 6), np.float32)


def regression(**changes: float) -> Regression:
    return Regression(SOME, ZERO, ZERO[:, 0], **{"l2": 0.1, "learning_rate": 1.0, **changes})


def test_a_regression_ends_where_the_gradient_is_zero() -> None:
    made = regression()
    losses = [made.step() for _ in range(3000)]
    weight, bias = (value.astype(np.float64) for value in made.head)
    scores = SOME.features.astype(np.float64) @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    errors = p - np.eye(3)[LABELS]
    assert np.abs(errors.T @ SOME.features / 300 + 0.1 * weight).max() < 1e-4
    assert np.abs(errors.mean(0)).max() < 1e-4
    assert losses[-1] < losses[0] == pytest.approx(np.log(3))
    assert evaluate(SOME, *made.head).accuracy > 0.4


def test_a_learning_rate_beyond_the_safe_one_diverges_and_is_told(make_runner: Make) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        run(make_runner(), learning_rate=1e6, l2=1e3, num_steps=200)
