"""First-order and zero-order replies in one round: who is asked for what, how they combine, and what replay is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker_server.errors import AggregationError, ConfigError
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.by_name import check_method
from broker_server.methods.method import Combined, MethodContext, Reply
from broker_server.methods.mixed.method import FIRST_ORDER, ZERO_ORDER, Mixed
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.tables import MethodTables, MixedConfig, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.methods.zero_order.log import Log
from broker_server.options import flat
from edge_runtime.errors import FedSpineError, TensorError
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.probe import encode_statistics, sum_features
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, LoraWork, ProbeWork, Work, ZeroOrderWork
from tests.broker_server import tiny
from tests.broker_server.methods.replies import reply, start_of

RANK, STEPS = 2, 3
MANIFEST = tiny.manifest(has_bias=True)
FIRST, ZERO = (Mixed.axes.arm((kind, RANK)) for kind in (FIRST_ORDER, ZERO_ORDER))
RNG = np.random.default_rng(0)


def method(aggregation: str = "fedit", *, head: str = "as-it-is", precondition: bool = False, **mixed: Any) -> Mixed:
    pruning = PruningConfig()
    context = MethodContext(
        manifest=MANIFEST,
        plans=Plans(MANIFEST, tiny.importance(), pruning.policy),
        training=TrainingConfig(num_rounds=9, num_local_steps=STEPS, batch_size=2, max_length=8),
        learning_rate_at=lambda number: 0.01 * number,
        is_deploy=lambda _: False,
        pruning=pruning,
        aggregation=aggregation,
        max_rank=RANK,
        seed=11,
        tables=MethodTables(
            zero_order=ZeroOrderConfig(num_inner=2, head=head, precondition=precondition),  # type: ignore[arg-type]
            mixed=MixedConfig(**mixed),
        ),
    )
    return Mixed(context)


def start(made: Mixed) -> Aggregated:
    dense = {"classifier.weight": np.ones((2, tiny.HIDDEN), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    return made.initial(dense, np.random.default_rng(0))


def asked(made: Mixed, model: Aggregated, arm: Arm, round_number: int = 1, device_id: str = "a") -> Work:
    key = AssignmentKey(run_id="run", round_number=round_number, device_id=device_id, attempt=1)
    return made.ask(key, arm, at_once=False, model=model).work


def trained(
    folder: Path, made: Mixed, model: Aggregated, device_id: str, num_examples: int, round_number: int = 1
) -> Reply:
    """Of a first-order device, which moved everything at random."""
    rng = np.random.default_rng(ord(device_id))
    work = asked(made, model, FIRST, round_number, device_id)
    moved = {
        name: made.before(model, work, name) + rng.normal(size=shape).astype(np.float32)
        for name, shape in made.trained(work).items()
    }
    return reply(folder, made, work, device_id, encode_payload(Payload(adapter=moved)), num_examples)


def scalars(
    folder: Path, made: Mixed, model: Aggregated, device_id: str, num_examples: int, round_number: int = 1
) -> Reply:
    """Of a zero-order device, at random."""
    work = asked(made, model, ZERO, round_number, device_id)
    assert isinstance(work, ZeroOrderWork)
    values = np.random.default_rng(ord(device_id)).normal(size=(STEPS, 2)).astype(np.float32)
    if work.largest_scalar is not None:
        values = values.clip(-np.float32(work.largest_scalar), np.float32(work.largest_scalar))
    return reply(folder, made, work, device_id, encode_reply(values, 1), num_examples)


def combine(made: Mixed, model: Aggregated, replies: list[Reply], round_number: int = 1) -> Combined:
    return made.combine(round_number, model, {}, replies, RNG)


def log_of(model: Aggregated) -> Log:
    log = Log.of(model.memory)
    assert log is not None
    return log


def test_an_arm_says_which_work_a_device_gets() -> None:
    made = method()
    model = start(made)
    first, zero = asked(made, model, FIRST, 3), asked(made, model, ZERO, 3)
    assert isinstance(first, LoraWork)
    assert isinstance(zero, ZeroOrderWork)
    assert (first.hyper_parameters.learning_rate, zero.learning_rate) == (0.03, 0.02), "each has a rate of its own"
    assert (first.arm, zero.arm) == (FIRST, ZERO)
    assert made.start_kind(first) != made.start_kind(zero)
    assert encode_payload(start_of(made, model, first)) == encode_payload(start_of(made, model, zero)), (
        "one global model"
    )


def test_all_devices_give_the_probes_sums_before_anything_else(tmp_path: Path) -> None:
    made = method(head="probe")
    model = start(made)
    key = AssignmentKey(run_id="run", round_number=1, device_id="a", attempt=1)
    assigned = [made.ask(key, arm, at_once=False, model=model) for arm in (FIRST, ZERO)]
    assert [type(one.work) for one in assigned] == [ProbeWork] * 2
    assert [one.arm for one in assigned] == [ZERO] * 2, "who is late with it may be in time with the other arm"
    assert not made.is_averaged(assigned[0].work)
    features = RNG.normal(size=(10, tiny.HIDDEN)).astype(np.float32)
    sums = encode_statistics(sum_features(features, (features[:, 0] > 0).astype(np.int64), 2))
    replies = [reply(tmp_path, made, one.work, name, sums, 10) for name, one in zip("ab", assigned, strict=True)]
    after = combine(made, model, replies).model
    assert [type(asked(made, after, arm, 2)) for arm in (FIRST, ZERO)] == [LoraWork, ZeroOrderWork]


def test_after_the_first_order_rounds_all_are_asked_for_the_same_steps() -> None:
    made = method(num_first_order_rounds=2)
    model = start(made)
    assert isinstance(asked(made, model, FIRST, 2), LoraWork)
    works = [asked(made, model, arm, 3) for arm in (FIRST, ZERO)]
    assert isinstance(works[0], ZeroOrderWork)
    assert works[0] == works[1], "scalars of different work are not combined"


@pytest.mark.parametrize("aggregation", ["fedit", "ffa_lora"])
@pytest.mark.parametrize("share", [0.25, 1.0, 4.0])
def test_changes_are_averaged_by_examples_times_the_share(tmp_path: Path, aggregation: str, share: float) -> None:
    made = method(aggregation, zero_order_share=share)
    model = start(made)
    first = [trained(tmp_path, made, model, name, n) for name, n in (("a", 10), ("b", 30))]
    zero = [scalars(tmp_path, made, model, name, n) for name, n in (("c", 5), ("d", 15))]
    alone = [combine(made, model, part).model.adapter for part in (first, zero)]
    both = combine(made, model, [zero[1], first[0], zero[0], first[1]])

    total = 40 + share * 20
    for name, before in model.adapter.items():
        changes = [one[name].astype(np.float64) - before for one in alone]
        expected = before + 40 / total * changes[0] + share * 20 / total * changes[1]
        np.testing.assert_allclose(both.model.adapter[name], expected, rtol=0, atol=1e-6)
    moved = {name for name, value in model.adapter.items() if not np.array_equal(value, both.model.adapter[name])}
    assert moved == {name for name in model.adapter if aggregation == "fedit" or "lora_A" not in name}
    assert both.deltas.keys() == {"a", "b"}
    assert both.not_finite == {"c": 1, "d": 1}
    again = combine(made, model, [*first, *zero]).model
    assert all(np.array_equal(value, again.adapter[name]) for name, value in both.model.adapter.items())


def test_nobody_catches_up_by_scalars_across_a_round_that_had_more(tmp_path: Path) -> None:
    made = method(precondition=True)
    model = start(made)
    replies = [trained(tmp_path, made, model, "a", 10), scalars(tmp_path, made, model, "c", 10)]
    mixed = combine(made, model, replies).model
    work = asked(made, mixed, ZERO, 2, "c")
    assert isinstance(work, ZeroOrderWork)
    assert work.log == ()
    assert work.largest_scalar is not None, "what is ordinary is known all the same"
    assert work.preconditioner is not None
    assert work.preconditioner.round_number == 2
    later = combine(made, mixed, [scalars(tmp_path, made, mixed, "c", 10, 2)], 2).model
    for device_id in ("c", "new"):
        work = asked(made, later, ZERO, 3, device_id)
        assert isinstance(work, ZeroOrderWork)
        assert [one.round_number for one in work.log] == [2]
    only_first = combine(made, later, [trained(tmp_path, made, later, "a", 10, 3)], 3).model
    assert (log_of(only_first).complete_from, len(log_of(only_first).entries)) == (4, 2)


def test_one_kind_alone_is_what_its_method_makes_of_it(tmp_path: Path) -> None:
    made = method()
    model = start(made)
    first, zero = trained(tmp_path, made, model, "a", 10), scalars(tmp_path, made, model, "c", 0)
    alone = combine(made, model, [first]).model
    with_nothing = combine(made, model, [first, zero]).model
    assert all(np.array_equal(value, with_nothing.adapter[name]) for name, value in alone.adapter.items())
    with pytest.raises(AggregationError, match="no examples together"):
        combine(made, model, [zero])
    counted, uncounted = scalars(tmp_path, made, model, "d", 10), trained(tmp_path, made, model, "b", 0)
    steps = [combine(made, model, part).model for part in ([counted], [counted, uncounted])]
    assert all(np.array_equal(value, steps[1].adapter[name]) for name, value in steps[0].adapter.items())
    assert log_of(steps[1]).complete_from == 1, "nothing but scalars changed the model: the round can be done again"


def test_a_reply_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    made = method()
    model = start(made)
    first, zero = trained(tmp_path, made, model, "a", 10), scalars(tmp_path, made, model, "c", 10)
    for mine, other in ((first, zero), (zero, first)):
        with pytest.raises(TensorError):
            made.check(mine.work, other.read(), 10)


def settings(given: Mapping[str, object] | None = None, name: str = "mixed") -> RunSettings:
    return resolve({"model": "m", "task": "text-classification", "data": "d.jsonl", "method": name, **(given or {})})


def test_presets() -> None:
    made, warm_up = settings(), settings({"rounds": 9}, "zowarmup")
    assert made.arms == Mixed.axes.parse(Mixed.default_arms)
    assert (made.scheduler, made.aggregation) == ("costliest", "ffa_lora")
    assert (made.mixed.num_first_order_rounds, warm_up.mixed.num_first_order_rounds) == (None, 4)
    check_method("mixed", flat(made), MANIFEST)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"arms": "0.0:8"}, "--arms: arm '0.0:8' is not ORDER:RANK, such as first-order:8"),
        ({"arms": "second-order:8"}, "--arms: arm 'second-order:8' is not ORDER:RANK"),
        ({"arms": "first-order:8,zero-order:4"}, "--arms is 'first-order:8,zero-order:4', but zero-order steps need"),
        ({"aggregation": "flexlora"}, "--aggregation is flexlora, which mixes the components of factors"),
        ({"importance": "lora"}, "--importance is lora, but mixed does not use it: leave it out"),
        ({"deploy_rounds": 1}, "--deploy-rounds is 1, but mixed does not use it: leave it out"),
        ({"emulate": "jetson"}, "--emulate is jetson, but step times are those of first-order training"),
        ({"zo_share": 0.0}, "--zo-share is 0.0, expected a finite number"),
        ({"first_order_rounds": -1}, "--first-order-rounds is -1, expected a whole number from 0"),
        ({"local_steps": 9999, "zo_inner": 9}, "--local-steps 9999, --zo-outer 1 and --zo-inner 9 give 89991"),
    ],
)
def test_what_cannot_be_is_refused_with_its_option(given: dict[str, object], line: str) -> None:
    with pytest.raises(FedSpineError) as caught:
        settings(given)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_what_first_order_training_has_is_not_refused() -> None:
    given = {"weight_decay": 0.1, "accumulation_steps": 2, "class_balance": 0.5}
    check_method("mixed", flat(settings(given)), MANIFEST)


def test_a_cut_outside_the_model_is_refused_once_that_is_known() -> None:
    manifest = msgspec.structs.replace(MANIFEST, dense=())
    with pytest.raises(ConfigError, match=r"^--zo-cut is 3: the cut is 3, expected 0 to 2"):
        check_method("mixed", flat(settings({"zo_cut": 3})), manifest)
