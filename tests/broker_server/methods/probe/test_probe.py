"""The probe on the server: one ridge solution whatever the split and order, heads averaged by examples."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import Method, MethodContext, Reply
from broker_server.methods.presets import PRESETS
from broker_server.methods.probe.method import LogitProbe, SoftmaxProbe, StatisticsProbe
from broker_server.methods.probe.ridge import likelihood_scale, solve_ridge
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.registry import WORKS
from broker_server.methods.training import TrainingConfig
from edge_runtime.errors import TensorError
from edge_runtime.formats.head import Head
from edge_runtime.formats.manifest import DenseSpec, Manifest
from edge_runtime.formats.probe import encode_head, encode_statistics, sum_features
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, ProbeWork
from tests.broker_server import tiny
from tests.broker_server.methods import replies

H, C, N = 24, 4, 4000
PENALTY = 1e-4


def manifest() -> Manifest:
    """The tiny model with a head of 24 features and 4 classes."""
    dense = (DenseSpec(name="classifier.weight", shape=(C, H)), DenseSpec(name="classifier.bias", shape=(C,)))
    return msgspec.structs.replace(tiny.manifest(), dense=dense)


def method(kind: type[Method], made: Manifest | None = None, penalty: float = PENALTY) -> Method:
    made = made or manifest()
    pruning = PruningConfig()
    context = MethodContext(
        manifest=made,
        plans=Plans(made, tiny.importance(), pruning.policy),
        training=TrainingConfig(num_rounds=3, num_local_steps=7, batch_size=2, max_length=8, weight_decay=penalty),
        learning_rate_at=lambda number: 1.0 / number,
        is_deploy=lambda _number: False,
        pruning=pruning,
        aggregation="fedit",
        max_rank=1,
        seed=0,
    )
    return kind(context)


def work_of(made: Method, round_number: int = 1) -> ProbeWork:
    key = AssignmentKey(run_id="run", round_number=round_number, device_id="a", attempt=1)
    work = made.ask(key, Arm(pruning_ratio=0.0, rank=1), at_once=False, model=start(made)).work
    assert isinstance(work, ProbeWork)
    return work


def start(made: Method) -> Aggregated:
    dense = {"classifier.weight": np.ones((C, H), np.float32), "classifier.bias": np.zeros(C, np.float32)}
    return made.initial(dense, np.random.default_rng(0))


@pytest.mark.parametrize("kind", [SoftmaxProbe, StatisticsProbe])
def test_factors_that_change_the_model_are_refused_as_a_start(kind: type[Method]) -> None:
    made = method(kind)
    model = start(made)
    made.check_initial(model)
    (name, *_) = (name for name in model.adapter if name.endswith("lora_B.weight"))
    changed = np.full_like(model.adapter[name], 1e-3)
    with pytest.raises(ConfigError, match="a probe trains the head of the model without them: leave --adapter out"):
        made.check_initial(Aggregated(adapter={**model.adapter, name: changed}))


def reply(made: Method, folder: Path, device_id: str, blob: bytes, num_examples: int) -> Reply:
    """An accepted update."""
    return replies.reply(folder, made, work_of(made), device_id, blob, num_examples)


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scales around class means, and labels."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, C, N)
    features = rng.normal(size=(N, H)) * np.geomspace(0.05, 1.0, H) + 0.3 * rng.normal(size=(C, H))[labels]
    return features.astype(np.float32), labels


def centralised(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ridge regression of all examples at once, by least squares on stacked rows: no sums, no normal equations."""
    ones = np.ones((len(features), 1))
    rows = np.concatenate([features.astype(np.float64), ones], axis=1)
    penalty = np.sqrt(len(features) * PENALTY) * np.eye(H, H + 1)
    targets = np.concatenate([np.eye(C)[labels], np.zeros((H, C))])
    solution, *_ = np.linalg.lstsq(np.concatenate([rows, penalty]), targets, rcond=None)
    return np.asarray(solution.T, np.float64)


def scale_of(features: np.ndarray, labels: np.ndarray) -> float:
    """The factor of the ridge solution's scores."""
    gram, cross = sum_features(features, labels, C).as_float()
    return likelihood_scale(gram, cross, PENALTY, *solve_ridge(gram, cross, PENALTY))


@pytest.mark.parametrize("num_examples", [60, 200, 2000])
def test_scores_are_scaled_to_the_least_loss_on_examples_that_were_not_seen(num_examples: int) -> None:
    """Also with few examples, to which the head fits far too well."""
    rng = np.random.default_rng(num_examples)
    labels = rng.integers(0, C, N)
    features = (rng.normal(size=(N, H)) + 0.5 * rng.normal(size=(C, H))[labels]).astype(np.float32)
    gram, cross = sum_features(features[:num_examples], labels[:num_examples], C).as_float()
    weight, bias = solve_ridge(gram, cross, PENALTY)
    scores = features[2000:] @ weight.T + bias

    def loss(scale: float) -> float:
        logits = scale * scores
        logits -= logits.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(2000), labels[2000:]]))

    chosen = loss(likelihood_scale(gram, cross, PENALTY, weight, bias))
    best = min(loss(scale) for scale in np.geomspace(0.2, 50, 200))
    assert 0.3 < best < 1.1
    assert chosen < best + 0.1 * (loss(1.0) - best), (chosen, best, loss(1.0))


def test_scores_of_classes_that_are_told_apart_or_of_too_few_examples_have_a_scale_too() -> None:
    labels = np.arange(400) % C
    apart = np.eye(C, H)[labels].astype(np.float32) + np.random.default_rng(0).normal(0, 1e-3, (400, H)).astype("f4")
    assert scale_of(apart, labels) == pytest.approx(np.log(4 * 401), rel=0.05), "scores are 0 and 1: 1 in 402 is wrong"
    assert 1 < scale_of(apart, np.minimum(labels, 2)) < 10, "a class that nobody has"
    few = np.random.default_rng(1).normal(size=(20, H)).astype(np.float32)
    assert scale_of(few, labels[:20]) == 1.0, "as many directions as examples"


@pytest.mark.parametrize("seed", range(5))
def test_sums_of_any_split_in_any_order_give_the_centralised_ridge_solution(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, labels = examples()
    owner = rng.choice(6, N, p=rng.dirichlet(np.full(6, 0.5)))
    made = method(StatisticsProbe)
    replies = []
    for device in rng.permutation(6):
        mine = owner == device
        if mine.any():
            blob = encode_statistics(sum_features(features[mine], labels[mine], C))
            replies.append(reply(made, tmp_path, f"d{device}", blob, int(mine.sum())))
    head = made.combine(1, start(made), {}, replies, rng).model.adapter
    expected = centralised(features, labels)
    assert np.abs(head["classifier.weight"] - expected[:, :-1]).max() < 1e-6 * np.abs(expected).max()
    assert np.abs(head["classifier.bias"] - expected[:, -1]).max() < 1e-6 * np.abs(expected).max()

    whole = reply(made, tmp_path, "all", encode_statistics(sum_features(features, labels, C)), N)
    other = made.combine(1, start(made), {}, [whole], rng).model.adapter
    for name, value in head.items():
        assert value.tobytes() == other[name].tobytes()


def test_a_head_that_is_tuned_further_is_the_same_but_for_the_scale(tmp_path: Path) -> None:
    features, labels = examples()
    blob = encode_statistics(sum_features(features, labels, C))
    plain, logits = (
        made.combine(1, start(made), {}, [reply(made, tmp_path, "a", blob, N)], np.random.default_rng(0)).model.adapter
        for made in (method(StatisticsProbe), method(LogitProbe))
    )
    scale = scale_of(features, labels)
    assert scale > 1.5
    for name in ("classifier.weight", "classifier.bias"):
        np.testing.assert_allclose(logits[name], scale * plain[name], rtol=1e-6)


def test_heads_are_averaged_by_examples_and_all_else_stays(tmp_path: Path) -> None:
    made, rng = method(SoftmaxProbe), np.random.default_rng(0)
    head = Head.of(manifest())
    heads = [
        {head.weight: rng.normal(size=(C, H)).astype(np.float32), head.bias: rng.normal(size=C).astype(np.float32)}
        for _ in range(3)
    ]
    numbers = (1, 2, 5)
    replies = [
        reply(made, tmp_path, f"d{n}", encode_head(head, tensors), n) for n, tensors in zip(numbers, heads, strict=True)
    ]
    before = start(made)
    after = made.combine(1, before, {}, replies, rng).model
    for name in (head.weight, head.bias):
        mean = sum(n * tensors[name].astype(np.float64) for n, tensors in zip(numbers, heads, strict=True)) / 8
        np.testing.assert_allclose(after.adapter[name], mean, rtol=1e-6)
        np.testing.assert_array_equal(made.before(before, work_of(made), name), before.adapter[name])
    assert made.trained(work_of(made)).keys() == {head.weight, head.bias}
    for name in before.adapter.keys() - {head.weight, head.bias}:
        assert after.adapter[name] is before.adapter[name]
    reordered = made.combine(1, before, {}, replies[::-1], rng).model
    assert all(np.array_equal(value, after.adapter[name]) for name, value in reordered.adapter.items())


def test_what_is_asked() -> None:
    softmax, sums = work_of(method(SoftmaxProbe), 2), work_of(method(StatisticsProbe))
    assert (softmax.form, softmax.num_steps, softmax.learning_rate, softmax.l2) == ("softmax", 7, 0.5, PENALTY)
    assert (sums.form, sums.num_steps, sums.batch_size, sums.max_length) == ("statistics", 1, 2, 8)
    made = method(StatisticsProbe)
    assert set(replies.start_of(made, start(made), sums).adapter) == {"classifier.weight", "classifier.bias"}


def test_sums_over_another_number_of_examples_are_refused() -> None:
    features, labels = examples()
    made = method(StatisticsProbe)
    with pytest.raises(TensorError, match="sums are over 4000 examples, but the update says 3999"):
        made.check(work_of(made), encode_statistics(sum_features(features, labels, C)), N - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2e4])
def test_a_head_that_is_too_large_is_refused(value: float) -> None:
    made, head = method(SoftmaxProbe), Head.of(manifest())
    tensors = {head.weight: np.full((C, H), 1.0, np.float32), head.bias: np.zeros(C, np.float32)}
    blob = bytearray(encode_head(head, tensors))
    blob[-4 * C * H :] = np.full((C, H), value, np.float32).tobytes()  # the weight is last in the file
    with pytest.raises((TensorError, AggregationError), match=r"not finite|too large"):
        made.check(work_of(made), bytes(blob), 10)


def test_a_head_for_sums_is_refused_and_the_other_way_round() -> None:
    features, labels = examples()
    head = Head.of(manifest())
    tensors = {head.weight: np.ones((C, H), np.float32), head.bias: np.zeros(C, np.float32)}
    sums, averaged = method(StatisticsProbe), method(SoftmaxProbe)
    with pytest.raises(TensorError):
        sums.check(work_of(sums), encode_head(head, tensors), N)
    with pytest.raises(TensorError):
        averaged.check(work_of(averaged), encode_statistics(sum_features(features, labels, C)), N)


def test_examples_that_determine_no_head_are_told() -> None:
    made = method(StatisticsProbe, penalty=0.0)
    blob = encode_statistics(sum_features(np.zeros((3, H), np.float32), np.array([0, 1, 2]), C))
    one = Reply(device_id="a", work=work_of(made), num_examples=3, tensors={}, read=lambda: blob)
    with pytest.raises(AggregationError, match="larger weight_decay"):
        made.combine(1, start(made), {}, [one], np.random.default_rng(0))


def test_a_model_without_such_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="text-classification"):
        method(StatisticsProbe, tiny.manifest())


def test_each_kind_of_work_of_a_preset_has_a_method() -> None:
    assert all(kind.asks for kind in WORKS.values())
    assert {preset.work for preset in PRESETS.values()} == WORKS.keys()
