"""fedspine: what a device does not hold it leaves as it is, and importance moves weights within bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.methods.aggregation import Aggregated, DeviceUpdate, make_aggregation
from broker_server.methods.aggregation.base import _target_updates
from broker_server.methods.aggregation.fedspine import LARGEST_FACTOR, unit_weights
from edge_runtime.formats.adapter import restrict
from edge_runtime.formats.manifest import TargetSpec
from edge_runtime.formats.payload import check_payload
from edge_runtime.formats.plan import Plan
from tests.broker_server.methods.aggregation.samples import (
    FULL,
    HALF,
    MANIFEST,
    RANK,
    Float32,
    Float64,
    adapter,
    aggregate,
    assert_close,
    before,
    component_sum,
    held,
    plans,
    product,
    update,
    updates,
)

UP = next(target for target in MANIFEST.targets if target.module == "up")


def weights_of(target: TargetSpec, sent: list[DeviceUpdate]) -> list[Float64]:
    return unit_weights(_target_updates(target, adapter(FULL, RANK, 7), sent))


@pytest.mark.parametrize(("name", "absent_keep"), [("fedspine", True), ("fedspine_holders", False)])
@settings(max_examples=50, deadline=None)
@given(sent=updates())
def test_it_is_the_dense_sum_over_components_by_unit_weights(
    sent: list[DeviceUpdate], name: str, *, absent_keep: bool
) -> None:
    old = before(rank=10)  # nothing is cut
    new = aggregate(name, old, sent)
    sent = sorted((one for one in sent if one.num_examples), key=lambda one: one.device_id)
    for target in MANIFEST.targets:
        expected = component_sum(target, old, sent, weights_of(target, sent), absent_keep=absent_keep)
        assert_close(product(target, new), expected)


@settings(max_examples=25, deadline=None)
@given(plan=plans(), rank=st.integers(1, RANK), merged=st.booleans())
def test_every_device_starts_from_the_whole_model(plan: Plan, rank: int, *, merged: bool) -> None:
    old = before(merged=merged)
    start = make_aggregation("fedspine").start(MANIFEST, old, plan, rank)
    check_payload(MANIFEST, plan, rank, start, is_update=False)
    for target in MANIFEST.targets:
        got = product(target, Aggregated(adapter=start.adapter, merged=start.merged))
        expected = product(target, old)[held(target, plan)]
        assert_close(got.reshape(-1), expected)


def test_other_rules_send_the_leading_components_and_what_is_merged() -> None:
    old = before(merged=True)
    start = make_aggregation("flora").start(MANIFEST, old, HALF, 2)
    assert start.merged.keys() == old.merged.keys()
    for key, value in restrict(MANIFEST, old.adapter, HALF, 2).items():
        np.testing.assert_array_equal(start.adapter[key], value)


@settings(max_examples=50, deadline=None)
@given(sent=updates())
def test_weights_stay_within_their_bounds(sent: list[DeviceUpdate]) -> None:
    sent = [one for one in sent if one.num_examples]
    for target in MANIFEST.targets:
        for one, own in zip(sent, weights_of(target, sent), strict=True):
            assert own.shape == (np.count_nonzero(held(target, one.plan).any(axis=0 if target.in_prune else 1)),)
            assert own.min() >= one.num_examples / LARGEST_FACTOR * (1 - 1e-12)
            assert own.max() <= one.num_examples * LARGEST_FACTOR * (1 + 1e-12)
            if not one.importance or target.module == "mixer":
                np.testing.assert_array_equal(own, float(one.num_examples))


@settings(max_examples=25, deadline=None)
@given(sent=updates(ranks=st.just(RANK)))
def test_without_importance_and_at_equal_ranks_and_plans_it_is_flexlora(sent: list[DeviceUpdate]) -> None:
    sent = [
        dataclasses.replace(update(one.device_id, rank=RANK, num_examples=one.num_examples, seed=index), importance={})
        for index, one in enumerate(sent)
    ]
    first, second = aggregate("fedspine", before(), sent), aggregate("flexlora", before(), sent)
    for key, value in first.adapter.items():
        np.testing.assert_allclose(value, second.adapter[key], rtol=0, atol=1e-6)


def scored(device_id: str, channels: list[float], *, scale: float = 1.0, num_examples: int = 5) -> DeviceUpdate:
    plan = FULL if len(channels) == 10 else HALF
    one = update(device_id, plan=plan, num_examples=num_examples)
    return dataclasses.replace(one, importance={(0, "channels"): np.array(channels, np.float32) * np.float32(scale)})


def test_the_device_to_which_a_unit_matters_more_weighs_more_there() -> None:
    flat = [1.0] * 10
    a, b = weights_of(UP, [scored("a", [1.4, 0.6, *flat[2:]]), scored("b", flat)])
    np.testing.assert_allclose(a / b, [1.4, 0.6, *flat[2:]], rtol=1e-6)


def test_the_scale_of_a_device_s_loss_does_not_matter() -> None:
    one, other = [3.0, *[1.0] * 9], [1.0, 2.0, *[1.0] * 8]
    plain = weights_of(UP, [scored("a", one), scored("b", other)])
    scaled = weights_of(UP, [scored("a", one, scale=1000.0), scored("b", other)])
    np.testing.assert_allclose(plain, scaled, rtol=1e-6)


def test_a_device_that_holds_only_important_units_is_not_held_back_for_it() -> None:
    """Its mean is higher than that of a device that holds everything; only units that both hold are compared."""
    everything = [10.0, 1.0, 10.0, 1.0, 10.0, 1.0, 1.0, 10.0, 1.0, 10.0]  # HALF keeps 0, 2, 4, 7, 9
    whole, half = weights_of(UP, [scored("a", everything), scored("b", [10.0] * 5)])
    np.testing.assert_allclose(half, 5.0)
    np.testing.assert_allclose(whole, 5.0)


@pytest.mark.parametrize("scores", [[0.0] * 10, [1.0, *[0.0] * 9], [1e30] * 10], ids=["zero", "one", "huge"])
def test_odd_scores_do_no_harm(scores: list[float]) -> None:
    for own in weights_of(UP, [scored("a", scores), scored("b", [1.0] * 10), scored("c", [0.0] * 5)]):
        assert np.all((own >= 2.5) & (own <= 10.0))


def test_what_a_class_of_devices_alone_holds_does_not_outweigh_the_others() -> None:
    """Two devices of equal weight pull all they hold by +1 and -1; one of them holds half. The fleet's pull is zero."""
    old = before()
    zero = {key: np.zeros_like(value) for key, value in old.adapter.items()}
    old = dataclasses.replace(old, adapter=zero | {"up.lora_A.weight": old.adapter["up.lora_A.weight"]})
    sent = []
    for device_id, plan, pull in (("whole", FULL, 1.0), ("half", HALF, -1.0)):
        tensors = dict(restrict(MANIFEST, old.adapter, plan, RANK))
        tensors["up.lora_B.weight"] = np.full_like(tensors["up.lora_B.weight"], pull)
        whole = update(device_id, plan=plan, rank=RANK, num_examples=5)
        sent.append(dataclasses.replace(whole, tensors=tensors, importance={}))
    new = product(UP, aggregate("fedspine", old, sent))
    by_holders = product(UP, aggregate("fedspine_holders", old, sent))
    pulled = np.ones((10, RANK)) @ old.adapter["up.lora_A.weight"].astype(np.float64)
    share = np.full((10, 1), 0.5)  # only one of two pulls here, with its own weight and not with both
    share[[0, 2, 4, 7, 9]] = 0.0
    assert_close(new, share * pulled)
    assert_close(by_holders, 2 * share * pulled)  # here it does


def test_a_small_rank_leaves_the_other_components_alone() -> None:
    """All devices have rank 1 and learn nothing: flexlora forgets components 2 to 4, fedspine keeps them."""
    old = before()
    first: dict[str, Float32] = {k: v[:1] if "lora_A" in k else v[:, :1] for k, v in old.adapter.items() if "lora" in k}
    first["classifier.weight"] = old.adapter["classifier.weight"]
    sent = [dataclasses.replace(update(device_id, rank=1), tensors=first) for device_id in ("a", "b")]
    for target in MANIFEST.targets:
        assert_close(product(target, aggregate("fedspine", old, sent)), product(target, old))
        assert np.linalg.matrix_rank(product(target, aggregate("flexlora", old, sent))) == 1
