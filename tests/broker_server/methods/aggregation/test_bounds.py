"""Bounds on adapters: too large ones are refused, those of real training are not."""

from __future__ import annotations

import numpy as np
import pytest

from broker_server.errors import AggregationError
from broker_server.methods.aggregation import AGGREGATIONS, Aggregated, DeviceUpdate, check_bounds, make_aggregation
from broker_server.methods.aggregation.bounds import LARGEST
from edge_runtime.formats import names
from edge_runtime.formats.adapter import initial
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from tests.broker_server import tiny

MANIFEST = tiny.manifest()
FULL = Plan.full(MANIFEST)
A, B = names.lora_a("mixer"), names.lora_b("mixer")


def adapter(scale: float = 1.0) -> tiny.Adapter:
    values = tiny.adapter(FULL, 2, np.random.default_rng(0))
    return {name: np.float32(scale) * value for name, value in values.items()}


@pytest.mark.parametrize("value", [1e20, -1e20, 2e4, float("inf"), float("nan")])
@pytest.mark.parametrize("name", [A, B, "classifier.weight"])
def test_an_element_beyond_the_bound_is_refused_by_name(name: str, value: float) -> None:
    tensors = adapter()
    tensors[name][0, 0] = value
    with pytest.raises(AggregationError, match=rf"^{name} is too large: an element has the magnitude .*at most 10000"):
        check_bounds(MANIFEST, tensors)


@pytest.mark.parametrize("size", [200.0, 9e3])
def test_a_product_beyond_the_bound_is_refused_although_its_factors_are_within(size: float) -> None:
    tensors = adapter()
    tensors[A][:], tensors[B][:] = size, size
    with pytest.raises(AggregationError, match=r"^mixer is too large: B A has the norm"):
        check_bounds(MANIFEST, tensors)


def test_factors_that_are_not_trained_are_not_missed() -> None:
    tensors = {name: value for name, value in adapter().items() if not names.is_lora_a(name)}
    check_bounds(MANIFEST, tensors)
    tensors[B][0, 0] = 1e5
    with pytest.raises(AggregationError):
        check_bounds(MANIFEST, tensors)


def test_merged_factors_are_bounded_too() -> None:
    merged = {"mixer": (np.full((1, 4), 1e5, np.float32), np.ones((4, 1), np.float32))}
    with pytest.raises(AggregationError, match="mixer"):
        check_bounds(MANIFEST, adapter(), merged)


def test_training_that_moves_every_element_far_is_accepted() -> None:
    """At a hundred times the default rate, thirty steps in the same direction: far more than a round does."""
    moved = np.float32(0.003 * 100 * 30)
    check_bounds(MANIFEST, {name: value + moved for name, value in adapter().items()})
    check_bounds(MANIFEST, adapter(20.0))


@pytest.mark.parametrize("rule", sorted(AGGREGATIONS))
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_what_is_accepted_can_be_aggregated_and_sent_as_float16(rule: str, scale: float) -> None:
    aggregation = make_aggregation(rule)
    rng = np.random.default_rng(1)
    dense = {"classifier.weight": np.ones((2, tiny.HIDDEN), np.float32)}
    before = Aggregated(adapter=initial(MANIFEST, dense, 2, rng))
    sent = aggregation.start(MANIFEST, before, FULL, 2).adapter
    updates = []
    for device_id in "abc":
        trained = {name: value + np.float32(scale) for name, value in sent.items()}
        if aggregation.trainable == "lora_b":
            trained = {name: value for name, value in trained.items() if not names.is_lora_a(name)}
        check_bounds(MANIFEST, trained)
        updates.append(DeviceUpdate(device_id=device_id, plan=FULL, rank=2, num_examples=5, tensors=trained))
    after = aggregation.aggregate(MANIFEST, before, updates, rng)
    check_bounds(MANIFEST, after.adapter, after.merged)
    assert encode_payload(Payload(adapter=dict(after.adapter), merged=dict(after.merged)), "float16")


def test_the_bound_fits_the_smallest_type_on_the_wire() -> None:
    assert np.finfo(np.float16).max > 6 * LARGEST
