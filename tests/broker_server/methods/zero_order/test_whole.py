"""Tuning of all weights on the server: the mean of the devices' models as coefficients, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from broker_server.errors import AggregationError, ConfigError
from broker_server.experiments.run.resolve import resolve
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.by_name import check_method
from broker_server.methods.method import Method, MethodContext, Reply
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.tables import MethodTables, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.methods.zero_order.method import ZeroOrder
from broker_server.methods.zero_order.whole import SeedPoolTuning
from broker_server.options import flat
from edge_runtime.errors import FedSpineError, MessageError, TensorError
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import encode_statistics, sum_features
from edge_runtime.formats.seed_pool import coefficients_of
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import ProbeWork, SeedPoolWork, Work
from edge_runtime.zero_order.noise import signs
from edge_runtime.zero_order.pool import Direction, device_number, moved, seeds_of_step
from tests.broker_server import tiny
from tests.broker_server.methods import replies
from tests.broker_server.methods.zero_order import samples

Array = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)
STEPS, NUM_SEEDS, SEED = 3, 7, 11


def method(**settings: Any) -> Method:
    manifest, pruning = samples.MANIFEST, PruningConfig()
    own: dict[str, Any] = {"tune": "all", "num_seeds": NUM_SEEDS, "num_outer": 2, "num_inner": 1, "cut": 0}
    config = ZeroOrderConfig(**{**own, "head": "as-it-is", **settings})
    context = MethodContext(
        manifest=manifest,
        plans=Plans(manifest, tiny.importance(), pruning.policy),
        training=TrainingConfig(num_rounds=9, num_local_steps=STEPS, batch_size=2, max_length=8),
        learning_rate_at=lambda number: 1e-4 * number,
        is_deploy=lambda _: False,
        pruning=pruning,
        aggregation="fedit",
        max_rank=2,
        seed=SEED,
        tables=MethodTables(zero_order=config),
    )
    return ZeroOrder.of(context)


def start(made: Method) -> Aggregated:
    dense = {"classifier.weight": np.ones((2, tiny.HIDDEN), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    return made.initial(dense, np.random.default_rng(0))


def asked(made: Method, model: Aggregated, round_number: int = 1) -> Work:
    key = AssignmentKey(run_id="run", round_number=round_number, device_id="a", attempt=1)
    return made.ask(key, samples.ARM, at_once=False, model=model).work


def steps(made: Method, model: Aggregated, round_number: int = 1) -> SeedPoolWork:
    work = asked(made, model, round_number)
    assert isinstance(work, SeedPoolWork)
    return work


def reply(folder: Path, made: Method, work: Work, device_id: str, scalars: Array, num_examples: int = 1) -> Reply:
    return replies.reply(folder, made, work, device_id, encode_reply(scalars, 0), num_examples)


def scalars(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(STEPS, 2)).astype(np.float32)


def test_the_settings_choose_the_form() -> None:
    assert isinstance(method(), SeedPoolTuning)
    assert isinstance(method(tune="adapter"), ZeroOrder)
    work = steps(method(noise="gaussian", epsilon=1e-3), start(method()), 4)
    assert (work.pool.seed, work.pool.noise, work.pool.num_seeds) == (SEED, "gaussian", NUM_SEEDS)
    assert (work.learning_rate, work.num_perturbations, work.num_local_steps) == (4e-4, 2, STEPS)
    assert (work.epsilon, work.largest_scalar) == (1e-3, None)
    assert not coefficients_of(work.pool).any()


def sent(work: SeedPoolWork, seed: int) -> Array:
    """A device's scalars, cut as was asked."""
    most = np.float32(np.inf if work.largest_scalar is None else work.largest_scalar)
    return np.clip(scalars(seed), -most, most)


def test_a_round_ends_at_the_mean_of_the_devices_models(tmp_path: Path) -> None:
    """Each device's model made of its own scalars; their mean by examples is what the coefficients give."""
    made, magnitudes = method(), list[float]()
    model, weight = start(made), np.linspace(-1, 1, 200, dtype=np.float32)
    for number in (1, 2):
        work = steps(made, model, number)
        by_device = {name: (n, sent(work, 10 * number + n)) for n, name in ((1, "a"), (3, "b"))}
        replies = [reply(tmp_path, made, work, name, rho, n) for name, (n, rho) in by_device.items()]
        magnitudes.append(float(np.median([np.abs(rho) for _, rho in by_device.values()])))
        most = np.float32(work.largest_scalar or 5 * magnitudes[-1])  # the server cuts where devices knew no bound
        expected = np.zeros(200)
        for name, (n, rho) in by_device.items():
            theta = moved(weight, 4, Direction.of(work.pool)).astype(np.float64)
            for step, values in enumerate(np.clip(rho, -most, most), start=1):
                drawn = seeds_of_step(SEED, device_number(name), number, step, NUM_SEEDS, 2)
                for seed, value in zip(drawn, values.tolist(), strict=True):
                    theta -= work.learning_rate / 2 * value * signs(SEED, 0, 0, seed, 4, 200)
            expected += n / 4 * theta
        before, model = model, made.combine(number, model, {}, replies, RNG).model
        assert model.pool is not None
        np.testing.assert_allclose(moved(weight, 4, Direction.of(model.pool)), expected, atol=1e-6)
        assert np.abs(expected - weight).max() > 1e-5
        assert made.combine(number, before, {}, replies[::-1], RNG).model.pool == model.pool
    assert steps(method(), model, 3).largest_scalar == pytest.approx(5 * np.median(magnitudes))


def test_the_head_is_the_probes_first_and_moves_with_all_else(tmp_path: Path) -> None:
    made = method(head="probe")
    before = start(made)
    work = asked(made, before)
    assert isinstance(work, ProbeWork)
    features = np.random.default_rng(1).normal(size=(20, tiny.HIDDEN)).astype(np.float32)
    sums = encode_statistics(sum_features(features, (features[:, 0] > 0).astype(np.int64), 2))
    model = made.combine(1, before, {}, [replies.reply(tmp_path, made, work, "a", sums, 20)], RNG).model
    assert model.pool is not None
    assert not np.array_equal(model.adapter["classifier.weight"], before.adapter["classifier.weight"])
    second = steps(made, model, 2)
    assert replies.start_of(made, model, second).adapter.keys() == {"classifier.weight", "classifier.bias"}
    after = made.combine(2, model, {}, [reply(tmp_path, made, second, "a", scalars(1))], RNG).model
    assert after.adapter is model.adapter  # where the head began stays: the pool moves it
    assert after.pool != model.pool


def test_replies_that_were_not_asked_for_are_refused(tmp_path: Path) -> None:
    made = method()
    model = start(made)
    work = msgspec.structs.replace(steps(made, model), largest_scalar=2.0)
    with pytest.raises(TensorError, match="expected"):
        made.check(work, encode_reply(np.zeros((STEPS, 3), np.float32), 0), 1)
    with pytest.raises(TensorError, match="was to be cut to 2"):
        made.check(work, encode_reply(np.full((STEPS, 2), 3, np.float32), 0), 1)
    plan = Plan.full(samples.MANIFEST).packed
    with pytest.raises(MessageError, match="head is not the probe's"):
        made.check(ProbeWork(plan=plan, form="statistics", batch_size=1, max_length=8), b"", 1)
    other = msgspec.structs.replace(work, learning_rate=1e-6)
    small = np.clip(scalars(1), np.float32(-2), np.float32(2))
    replies = [reply(tmp_path, made, one, name, small) for one, name in ((work, "a"), (other, "b"))]
    with pytest.raises(AggregationError, match="asked for different steps"):
        made.combine(1, model, {}, replies, RNG)
    with pytest.raises(AggregationError, match="no examples together"):
        made.combine(1, model, {}, [reply(tmp_path, made, work, "a", small, 0)], RNG)
    huge = msgspec.structs.replace(steps(made, model), learning_rate=1e6)
    with pytest.raises(AggregationError, match="beyond every bound"):
        made.combine(1, model, {}, [reply(tmp_path, made, huge, "a", 100 * scalars(1))], RNG)


def test_an_adapter_that_changes_the_model_is_not_begun_with() -> None:
    made = method()
    model = start(made)
    made.check_initial(model)
    adapter = {name: value + 1 if "lora_B" in name else value for name, value in model.adapter.items()}
    with pytest.raises(ConfigError, match="has LoRA factors that change the model, and --tune all has none"):
        made.check_initial(dataclasses.replace(model, adapter=adapter))


def settings(name: str, given: Mapping[str, object]) -> object:
    return resolve({"model": "m", "task": "text-classification", "data": "d.jsonl", "method": name, **given})


def test_fedkseed_tunes_all_and_mezo_may() -> None:
    made = resolve({"model": "m", "task": "text-classification", "data": "d.jsonl", "method": "fedkseed"})
    assert (made.zero_order.tune, made.zero_order.num_seeds, made.zero_order.num_outer) == ("all", 1024, 1)
    check_method("fedkseed", flat(made), samples.MANIFEST)
    settings("mezo", {"tune": "all", "learning_rate": 1e-5, "zo_seeds": 64})
    settings("decomfl", {"tune": "all", "learning_rate": 1e-5})


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        (
            "fedspzo",
            {"tune": "all", "learning_rate": 1e-5},
            "--tune all perturbs all weights together, without a lower",
        ),
        ("fedkseed", {"zo_cut": 1}, "--tune all perturbs all weights together"),
        ("fedkseed", {"zo_combine": "median"}, "--zo-combine needs shared perturbations, and --tune all has none"),
        ("fedkseed", {"zo_precondition": True}, "--zo-precondition needs shared perturbations"),
        ("fedkseed", {"zo_outer": 4, "zo_normalise": True}, "--zo-normalise needs shared perturbations"),
        ("mezo", {"tune": "all"}, "--learning-rate is 0.01, beyond 0.001: with --tune all a step moves every weight"),
        ("mezo", {"zo_seeds": 64}, "--zo-seeds is 64, but only --tune all has a pool of seeds: leave it out"),
        ("fedkseed", {"zo_seeds": 1}, "--zo-seeds is 1, expected a whole number from 2 to 8192"),
        ("fedkseed", {"tune": "some"}, "--tune is 'some', expected"),
        ("fedkseed", {"arms": "0.25:8"}, "--arms: arm '0.25:8' is not RANK"),
    ],
)
def test_what_cannot_be_is_refused_with_its_option(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(FedSpineError) as caught:
        settings(name, given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_weights_in_few_bits_are_refused_once_they_are_known() -> None:
    first, *others = samples.MANIFEST.tensors
    manifest = msgspec.structs.replace(samples.MANIFEST, tensors=(msgspec.structs.replace(first, dtype="nf4"), *others))
    made = resolve({"model": "m", "task": "text-classification", "data": "d.jsonl", "method": "fedkseed"})
    with pytest.raises(ConfigError, match=f"^--tune is all, but {first.name} is stored as nf4.*: export with float32"):
        check_method("fedkseed", flat(made), manifest)
