"""A method of a package outside with both its sides: devices do its work, and its server's side checks and combines."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from broker_server.config import CoordinatorConfig
from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.by_name import check_method, method_of
from broker_server.methods.method import Method, Reply
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.coordinator.run_context import RunContext, open_run
from broker_server.serving.services import fleets
from broker_server.serving.storage.store import Store
from edge_runtime.agent.assignment_runner import HOLDOUT_SEED
from edge_runtime.agent.methods.installed import InstalledMethods
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.errors import ExitCode, TensorError
from edge_runtime.formats.head import Head
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.messages import Assignment, AssignmentKey, Verdict, Welcome
from edge_runtime.wire.work import PluginWork
from tests.broker_server import fleet, tiny
from tests.broker_server.links import InProcess, open_link
from tests.broker_server.serving.coordinator.whole_run import (
    NAMES,
    WAIT_S,
    WholeRun,
    artifact_server,
    write_examples,
    write_run,
)

pytestmark = pytest.mark.usefixtures("plugin")

TRAINING = TrainingConfig(num_rounds=1, num_local_steps=1, batch_size=4, max_length=8)
Array = npt.NDArray[np.float64]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)
    one = InProcess()
    yield one
    one.forget()


# ---- both sides ------------------------------------------------------------------------------------------------------


def features_by_torch(model: Path, dataset: Dataset) -> Array:
    """Inputs of the classifier, by transformers."""
    import torch
    import transformers

    bert = transformers.BertForSequenceClassification.from_pretrained(model).eval()
    batch = dataset.batch(np.arange(len(dataset)))
    with torch.no_grad():
        pooled = bert.bert(
            input_ids=torch.from_numpy(batch.input_ids), attention_mask=torch.from_numpy(batch.attention_mask)
        ).pooler_output
    return np.asarray(pooled.numpy(), np.float64)


def head_of_means(features: Array, labels: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Weight and bias, written down anew: one example after the other."""
    means = np.stack([features[labels == one].mean(axis=0) for one in np.unique(labels)])
    spread = np.mean([((row - means[label]) ** 2).sum() for row, label in zip(features, labels, strict=True)])
    return means / spread, -0.5 * np.array([mean @ mean for mean in means]) / spread


def test_devices_sum_and_the_server_makes_the_head_of_all_examples(
    broker: InProcess, tiny_bert_artifact: Path, tiny_bert_model: Path, tmp_path: Path
) -> None:
    run = WholeRun(tmp_path, broker.broker)
    (run.run_dir / "artifacts").mkdir(parents=True)
    arms = method_of("class_means").axes.parse("0.0")
    changes = {"method": "class_means", "arms": arms, "training": TRAINING, "pruning": PruningConfig()}
    with artifact_server(run.run_dir / "artifacts") as url:
        write_run(run.run_dir, tiny_bert_artifact, url, broker.url, **changes)
        for name in NAMES:
            run.start(name)
        run_coordinator(run.run_dir, open_link(broker.url))
        for board in run.boards.values():
            board.join(WAIT_S)

    assert [board.result for board in run.boards.values()] == [ExitCode.OK] * len(NAMES)
    assert [device.outcome for device in run.records[1].devices] == ["accepted"] * len(NAMES)
    assert {device.work for device in run.records[1].devices} == {"class_means"}
    artifact = Artifact.open(tiny_bert_artifact)
    parts = []
    for name in NAMES:
        examples = load_examples(write_examples(tmp_path / "again.jsonl", name), artifact, TRAINING.max_length)
        parts.append(examples.split_holdout(4, HOLDOUT_SEED)[0])
    features = np.concatenate([features_by_torch(tiny_bert_model, part) for part in parts])
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    weight, bias = head_of_means(features, labels)
    head, made = Head.of(artifact.manifest), decode_tensors(run.adapters[1])
    np.testing.assert_allclose(made[head.weight], weight, rtol=1e-3, atol=1e-3 * np.abs(weight).max())
    np.testing.assert_allclose(made[head.bias], bias, rtol=1e-3)

    held_out = load_examples(run.run_dir / "test.jsonl", artifact, TRAINING.max_length)
    scores = features_by_torch(tiny_bert_model, held_out) @ weight.T + bias
    assert run.accuracies[1] == pytest.approx((scores.argmax(axis=1) == held_out.labels).mean())
    assert run.losses[1] < run.losses[0]


def test_the_device_s_side_loads_nothing_of_a_server(installed: Path) -> None:
    from tests.architecture.test_torch_free import BLOCKED, SERVER_ONLY, run_fresh

    program = f"import sys; sys.path.insert(0, {str(installed)!r})\n{BLOCKED.replace(chr(10) + '    ', chr(10))}"
    others = ["broker_server", "exporter", "models", "fedspine", "sqlalchemy", "rich"]
    done = run_fresh(Path.cwd(), program, ",".join([*SERVER_ONLY, *others]), "fedspine_example.class_means_device")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


# ---- the server's side -----------------------------------------------------------------------------------------------


def sums_of(**changes: object) -> bytes:
    """A reply over ten examples of the tiny model, five of each class; values by name take the place of others."""
    rows = np.random.default_rng(0).normal(size=(10, tiny.HIDDEN))
    good = {
        "features": np.stack([rows[:5].sum(axis=0), rows[5:].sum(axis=0)]),
        "squares": np.array([(rows[:5] ** 2).sum(), (rows[5:] ** 2).sum()]),
        "counts": np.array([5.0, 5.0]),
    }
    made: dict[str, Any] = {**good, **changes}
    return encode_tensors({name: np.asarray(value, np.float32) for name, value in made.items() if value is not None})


@pytest.fixture
def opened(tmp_path: Path, broker: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunContext]:
    """A run of the method on the tiny model."""
    configure(tmp_path, broker.url, monkeypatch)
    with contextlib.closing(Store.open(tmp_path)) as store:
        yield open_run(tmp_path, CoordinatorConfig.load(tmp_path / "config.toml"), store)


def configure(run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(tiny, "write_artifact", functools.partial(tiny.write_artifact, has_bias=True))
    arms = method_of("class_means").axes.parse("0.0")
    fleet.config(run_dir, url, method="class_means", arms=arms, training=TRAINING, **changes)


def asked(run: RunContext) -> PluginWork:
    key = AssignmentKey(run_id="run-1", round_number=1, device_id="a", attempt=1)
    assigned = run.method.ask(key, run.config.arms[0], at_once=False, model=run.adapters.read(0))
    assert isinstance(assigned.work, PluginWork)
    return assigned.work


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "too short to be safetensors"),
    "no tensors": (lambda: b"\xff" * 400, "announces a header"),
    "a missing tensor": (lambda: sums_of(counts=None), "expected"),
    "one tensor more": (lambda: sums_of(more=[1.0]), "expected"),
    "another model's": (lambda: sums_of(features=np.ones((2, 7))), "expected"),
    "a NaN": (lambda: sums_of(features=np.full((2, tiny.HIDDEN), np.nan)), "not finite"),
    "an infinity": (lambda: sums_of(squares=[np.inf, 1.0]), "not finite"),
    "half an example": (lambda: sums_of(counts=[5.5, 4.5]), "not whole"),
    "fewer than none": (lambda: sums_of(counts=[-5.0, 15.0]), "not whole"),
    "examples of too much weight": (lambda: sums_of(features=np.full((2, tiny.HIDDEN), 1e4)), "too large"),
    "sums without squares": (lambda: sums_of(squares=[0.0, 0.0]), "do not fit"),
    "too large squares": (lambda: sums_of(squares=[1e9, 1e9]), "do not fit"),
    "other examples": (lambda: sums_of(counts=[5.0, 6.0]), "over 11 examples, but the update says 10"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_a_reply_that_no_examples_give_is_refused(opened: RunContext, make: Callable[[], bytes], message: str) -> None:
    work = asked(opened)
    opened.method.check(work, sums_of(), 10)
    assert len(sums_of()) <= opened.method.most_bytes(work)
    with pytest.raises(TensorError, match=message):
        opened.method.check(work, make(), 10)


def test_examples_that_are_all_alike_make_no_head(opened: RunContext) -> None:
    blob = sums_of(features=np.full((2, tiny.HIDDEN), 5.0), squares=[5.0 * tiny.HIDDEN] * 2)
    replies = [Reply(device_id="a", work=asked(opened), num_examples=10, tensors={}, read=lambda: blob)]
    with pytest.raises(AggregationError, match="do not differ"):
        opened.method.combine(1, opened.adapters.read(0), opened.importance, replies, np.random.default_rng(0))


def test_a_class_that_nobody_has_gets_the_mean_of_all(opened: RunContext) -> None:
    rows = np.random.default_rng(1).normal(size=(10, tiny.HIDDEN))
    blob = sums_of(
        features=[rows.sum(axis=0), np.zeros(tiny.HIDDEN)], squares=[(rows**2).sum(), 0.0], counts=[10.0, 0.0]
    )
    reply = Reply(device_id="a", work=asked(opened), num_examples=10, tensors={}, read=lambda: blob)
    made = opened.method.combine(1, opened.adapters.read(0), opened.importance, [reply], np.random.default_rng(0))
    weight = made.model.adapter["classifier.weight"]
    np.testing.assert_allclose(weight[0], weight[1], rtol=1e-6)


def test_a_device_that_sends_something_else_costs_no_other(
    broker: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, broker.url, monkeypatch)

    def good(assignment: Assignment, blob: bytes) -> bytes:
        assert isinstance(assignment.work, PluginWork)
        assert (assignment.work.method, assignment.work.settings) == ("class_means", {"largest_norm": 100.0})
        assert sorted(decode_tensors(blob)) == ["classifier.bias", "classifier.weight"]
        return sums_of()

    with (
        fleet.Device(broker.url, "a", good) as a,
        fleet.Device(broker.url, "b", lambda *_: sums_of(counts=[np.nan, 5.0])) as b,
    ):
        run_coordinator(tmp_path, open_link(broker.url))

    (welcome, *_), (verdict, *_) = a.heard(Welcome), b.heard(Verdict)
    assert isinstance(welcome, Welcome)
    assert (welcome.work, welcome.device_method) == ("plugin", "class_means")
    assert isinstance(verdict, Verdict)
    assert (verdict.accepted, verdict.detail) == (False, "sums hold values that are not finite")
    with contextlib.closing(Store.open(tmp_path)) as store:
        outcomes = {device.device_id: device.outcome for device in store.load_round_records()[1].devices}
    assert outcomes == {"a": "accepted", "b": "rejected"}


@pytest.mark.parametrize(
    ("name", "expected"), [("os:system", "1 to 64"), ("lora", "another name than those of FedSpine's own work, lora, ")]
)
def test_a_package_that_names_no_method_for_devices_is_told(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: type[Method] = importlib.import_module("fedspine_example.class_means").ClassMeans
    monkeypatch.setattr(made, "device_method", name)
    with pytest.raises(ConfigError, match=rf"--method: device_method of .*ClassMeans is '{name}', expected {expected}"):
        check_method("class_means", {})


def test_a_class_that_cannot_work_is_told_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    made: type[Method] = importlib.import_module("fedspine_example.class_means").ClassMeans
    with pytest.raises(ConfigError, match="--update-transforms apply to the change of a model, but class_means averag"):
        check_method("class_means", {"update_transforms": "noise:1"})
    monkeypatch.setattr(made, "averages", True)
    with pytest.raises(ConfigError, match="but class_means averages none: leave them out"):
        check_method("class_means", {"update_transforms": "noise:1"})
    monkeypatch.setattr(made, "uses", frozenset({"rounds", "learnin_rate"}))
    with pytest.raises(
        ConfigError, match=r"uses of .*ClassMeans has 'learnin_rate', .* did you mean 'learning_rate'\?"
    ):
        check_method("class_means", {})
    monkeypatch.setattr(made, "__abstractmethods__", frozenset({"combine", "ask"}))
    with pytest.raises(ConfigError, match=r"--method: .*ClassMeans does not define ask, combine: fix its package"):
        check_method("class_means", {})


def test_a_check_that_fails_refuses_the_reply_and_not_the_run(
    broker: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: type[Method] = importlib.import_module("fedspine_example.class_means").ClassMeans
    configure(tmp_path, broker.url, monkeypatch)
    plain = made.check

    def check(self: Method, work: PluginWork, blob: bytes, num_examples: int) -> None:
        plain(self, work, blob, num_examples)
        if decode_tensors(blob)["counts"][0] == 6:
            decode_tensors(blob)["more"]

    monkeypatch.setattr(made, "check", check)
    with (
        fleet.Device(broker.url, "a", lambda *_: sums_of()),
        fleet.Device(broker.url, "b", lambda *_: sums_of(counts=[6, 4])) as b,
    ):
        run_coordinator(tmp_path, open_link(broker.url))

    (verdict,) = (one for one in b.heard(Verdict) if isinstance(one, Verdict))
    assert (verdict.accepted, verdict.detail) == (False, "the check of the update failed (KeyError: 'more')")
    assert "round 1: the check of the update of b failed" in caplog.text
    with contextlib.closing(Store.open(tmp_path)) as store:
        assert [one.outcome for one in store.load_round_records()[1].devices] == ["accepted", "rejected"]


def test_a_device_loads_nothing_of_the_package_for_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "fedspine_example.class_means_device"
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert InstalledMethods().source_of("class_means") == "fedspine-example"
    assert module not in sys.modules
    assert InstalledMethods().find("class_means") is sys.modules[module].ClassMeans
