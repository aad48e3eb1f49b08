"""Split tuning on the server: the same as training the upper blocks where the examples are, in any order of service."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.by_name import check_method
from broker_server.methods.method import Combined, Method, Reply
from broker_server.methods.split.method import Split
from broker_server.methods.split.tuning import UpperTuner
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.errors import DivergedError
from edge_runtime.engine.trainer import Trainer, train
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats import names
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters, ProbeWork
from exporter.artifact.export import export_model
from tests.broker_server.methods.split.activation_replies import (
    MAX_LENGTH,
    NO_SCORES,
    RANK,
    blob_of,
    examples,
    method,
    reply,
    start,
    work_of,
)

SETTINGS: dict[str, object] = {"freeze_lower": True, "update_transforms": "", "cut": -1, "arms": "8"}


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """An artifact of two blocks, and one of the same model whose lower block is not tuned."""
    whole = Artifact.open(request.getfixturevalue(f"{request.param}_artifact"))
    out, manifest = tmp_path_factory.mktemp("top") / "made", whole.manifest
    labels = list(manifest.labels) or None
    model = request.getfixturevalue(f"{request.param}_model")
    export_model(model, manifest.task, out, labels=labels, top_blocks=1)
    return whole, Artifact.open(out)


@pytest.fixture(scope="module")
def artifact(tiny_bert_artifact: Path) -> Artifact:
    return Artifact.open(tiny_bert_artifact)


def combined(made: Split, artifact: Artifact, given: list[Reply], round_number: int = 2) -> Combined:
    rng = np.random.default_rng(0)
    return made.combine(round_number, start(made, artifact), NO_SCORES, given, rng)


def trained_at_home(artifact: Artifact, made: Split, dataset: Dataset, hyper: HyperParameters) -> dict[str, Any]:
    """First-order LoRA on the device's examples, on an artifact whose lower block has no factors."""
    whole = start(made, made._artifact)
    own = {name: value for name, value in whole.adapter.items() if name in made._upper}
    trainer = Trainer(artifact, num_threads=1, mode="staged")
    run = trainer.start(Plan.full(artifact.manifest), RANK, own, hyper)
    rng = np.random.default_rng([hyper.seed, 2])
    train(run, batches(dataset, hyper.batch_size, rng, class_balance=hyper.class_balance), hyper)
    return run.adapter()


@pytest.mark.parametrize(
    ("pair", "class_balance"), [("tiny_bert", 0.0), ("tiny_bert", 1.0), ("tiny_llama", 0.0)], indirect=["pair"]
)
def test_one_device_gives_what_first_order_training_of_the_upper_blocks_gives(
    pair: tuple[Artifact, Artifact], tmp_path: Path, class_balance: float
) -> None:
    artifact, top = pair
    made = method(artifact, class_balance=class_balance, weight_decay=0.1, num_warmup_steps=2, max_grad_norm=0.5)
    model = combined(made, artifact, [reply(tmp_path, made, artifact, "a")]).model
    hyper = made._context.hyper_parameters(2, "a")
    expected = trained_at_home(top, made, examples(artifact, sum(b"a")), hyper)
    begun = start(made, artifact).adapter
    assert set(expected) == made._upper
    for name, value in expected.items():
        moved = np.abs(value - begun[name]).max()
        assert moved > 1e-4, name
        np.testing.assert_allclose(model.adapter[name], value, atol=max(2e-6, 2e-3 * moved), err_msg=name)
    for name in begun.keys() - made._upper:
        np.testing.assert_array_equal(model.adapter[name], begun[name], err_msg=name)
    assert {name for name in begun if "lora" in name} - made._upper, "the lower block has factors, which stay"


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.1), ("float16", 0.01)])
def test_a_coding_changes_the_result_by_a_small_share_of_what_is_learned(
    pair: tuple[Artifact, Artifact], tmp_path: Path, dtype: str, most: float
) -> None:
    artifact, _ = pair
    found = []
    for one in ("float32", dtype):
        made = method(artifact, dtype=one)
        found.append(combined(made, artifact, [reply(tmp_path, made, artifact, "a")]).model.adapter)
    begun = start(made, artifact).adapter
    moved = np.concatenate([(found[0][name] - begun[name]).ravel() for name in sorted(made._upper)])
    error = np.concatenate([(found[0][name] - found[1][name]).ravel() for name in sorted(made._upper)])
    assert 0 < np.linalg.norm(error) < most * np.linalg.norm(moved)


def test_the_order_of_service_changes_no_bit(artifact: Artifact, tmp_path: Path) -> None:
    made = method(artifact, dtype="int8")
    served = [reply(tmp_path, made, artifact, name, count) for name, count in (("a", 12), ("b", 3), ("c", 7))]
    first = combined(made, artifact, served)
    orders = [(2, 1, 0), (1, 0, 2)]
    for order in orders:
        other = combined(method(artifact, dtype="int8"), artifact, [served[place] for place in order])
        assert other.deltas == first.deltas
        for name, value in first.model.adapter.items():
            np.testing.assert_array_equal(other.model.adapter[name], value, err_msg=name)
    again = combined(made, artifact, served)
    for name, value in first.model.adapter.items():
        np.testing.assert_array_equal(again.model.adapter[name], value, err_msg="a model that was used before")


def test_adapters_are_averaged_by_examples(artifact: Artifact, tmp_path: Path) -> None:
    made = method(artifact)
    a, b = reply(tmp_path, made, artifact, "a", 12), reply(tmp_path, made, artifact, "b", 4)
    alone = [combined(made, artifact, [one]).model.adapter for one in (a, b)]
    both = combined(made, artifact, [a, b])
    held = combined(made, artifact, [dataclasses.replace(a, num_examples=4), b]).model.adapter
    for name in made._upper:
        one, other = (adapter[name].astype(np.float64) for adapter in alone)
        assert np.abs(one - other).max() > 1e-4
        np.testing.assert_allclose(both.model.adapter[name], 0.75 * one + 0.25 * other, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(held[name], 0.5 * one + 0.5 * other, rtol=1e-6, atol=1e-9)
    assert set(both.deltas) == {"a", "b"}
    assert min(both.deltas.values()) > 0


def test_devices_on_whose_activations_training_diverges_do_not_count(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = method(artifact)
    a, b = reply(tmp_path, made, artifact, "a"), reply(tmp_path, made, artifact, "b")
    expected, tune, calls = combined(made, artifact, [b]).model.adapter, UpperTuner.tune, []

    def diverge(self: UpperTuner, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1 or len(calls) > 2:
            msg = "training diverged: loss is nan in step 1"
            raise DivergedError(msg, step=1)
        return tune(self, *given)

    monkeypatch.setattr(UpperTuner, "tune", diverge)
    found = combined(made, artifact, [a, b])
    assert set(found.deltas) == {"b"}
    assert "round 2 does not count device a: training diverged" in caplog.text
    for name, value in expected.items():
        np.testing.assert_array_equal(found.model.adapter[name], value)
    with pytest.raises(AggregationError, match="of 2 devices gave no adapter: lower the learning rate"):
        combined(made, artifact, [a, b])


def test_a_rate_that_is_far_too_high_gives_no_adapter(artifact: Artifact, tmp_path: Path) -> None:
    made = method(artifact, learning_rate=9e5)
    with pytest.raises(AggregationError, match="gave no adapter"):
        combined(made, artifact, [reply(tmp_path, made, artifact, "a")])


def test_a_device_without_weight_is_not_served(artifact: Artifact, tmp_path: Path) -> None:
    made = method(artifact)
    nothing = dataclasses.replace(reply(tmp_path, made, artifact, "a"), num_examples=0)
    assert set(combined(made, artifact, [nothing, reply(tmp_path, made, artifact, "b")]).deltas) == {"b"}


def test_what_is_asked_starts_from_nothing(artifact: Artifact) -> None:
    made = method(artifact, dtype="int8")
    work, as_any = work_of(made), cast("Method", made)
    assert (work.cut, work.dtype, work.batch_size, work.max_length) == (1, "int8", 4, MAX_LENGTH)
    assert (work.noise, work_of(method(artifact, noise=0.25)).noise) == (0, 0.25)
    assert as_any.start(start(made, artifact), work) is None
    assert made.trained(work) == {}
    assert Split.asks_once


def test_a_reply_of_other_work_is_refused(artifact: Artifact) -> None:
    made, dataset = method(artifact), examples(artifact, 1)
    blob = blob_of(artifact, work_of(made), dataset)
    made.check(work_of(made), blob, len(dataset))
    with pytest.raises(TensorError, match="the update says 9 examples"):
        made.check(work_of(made), blob, 9)
    with pytest.raises(TensorError, match=r"have tensors .*expected .*int8"):
        made.check(work_of(method(artifact, dtype="int8")), blob, len(dataset))
    probe = ProbeWork(plan=Plan.full(artifact.manifest).packed, form="softmax", batch_size=1, max_length=1)
    with pytest.raises(MessageError, match="asks for ProbeWork, but this run's method is split: start a new run"):
        made.check(probe, blob, len(dataset))


def test_an_adapter_that_changes_lower_blocks_is_refused_as_a_start(artifact: Artifact) -> None:
    made = method(artifact)
    model = start(made, artifact)
    for layer, is_refused in ((1, False), (0, True)):
        module = next(target.module for target in artifact.manifest.targets if target.layer == layer)
        name = names.lora_b(module)
        changed = dataclasses.replace(model, adapter={**model.adapter, name: np.full_like(model.adapter[name], 1e-3)})
        if not is_refused:
            made.check_initial(changed)
            continue
        with pytest.raises(ConfigError, match="changes blocks below the cut of 1, which devices of method split run"):
            made.check_initial(changed)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"freeze_lower": False}, "--freeze-lower is off, but method split does not tune lower blocks"),
        ({"update_transforms": "clip:1"}, "--update-transforms apply to a trained change"),
        ({"cut": 0}, "--cut is 0, but a device runs at least one block"),
        ({"arms": "8,4"}, "--arms is '8,4', but split tuning takes one rank for all devices"),
        ({"cut": 2}, "--cut is 2: the cut is after 2 blocks, expected 1 to 1: .* has 2 blocks"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(artifact: Artifact, changes: dict[str, object], why: str) -> None:
    check_method("split", SETTINGS, artifact.manifest)
    with pytest.raises(ConfigError, match=why):
        check_method("split", {**SETTINGS, **changes}, artifact.manifest)
