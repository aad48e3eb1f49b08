"""fedit, ffa_lora and hetlora average A and B on their own: each element against the definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from broker_server.methods.aggregation import DeviceUpdate
from edge_runtime.formats import names
from edge_runtime.formats.adapter import target_indices
from edge_runtime.formats.manifest import TargetSpec
from tests.broker_server.methods.aggregation.samples import (
    MANIFEST,
    RANK,
    Float64,
    aggregate,
    assert_close,
    before,
    product,
    update,
    updates,
)


def padded(target: TargetSpec, one: DeviceUpdate, key: str) -> tuple[Float64, Float64, Float64]:
    """A factor at its place in the global one; where it holds the coordinate; where it holds the element."""
    own, everything = np.arange(one.rank), np.arange(RANK)
    rows, columns = target_indices(target, one.plan)
    if names.is_lora_a(key):
        shape = (RANK, target.in_features)
        held = np.arange(shape[1]) if columns is None else columns
        at, at_every_rank = np.ix_(own, held), np.ix_(everything, held)
    else:
        shape = (target.out_features, RANK)
        held = np.arange(shape[0]) if rows is None else rows
        at, at_every_rank = np.ix_(held, own), np.ix_(held, everything)
    value, coordinate, element = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    value[at], coordinate[at_every_rank], element[at] = one.tensors[key], 1, 1
    return value, coordinate, element


@pytest.mark.parametrize("name", ["fedit", "ffa_lora"])
@settings(max_examples=25, deadline=None)
@given(sent=updates())
def test_each_element_is_averaged_over_its_holders(name: str, sent: list[DeviceUpdate]) -> None:
    old = before()
    new = aggregate(name, old, sent).adapter
    for target in MANIFEST.targets:
        for key in (names.lora_a(target.module), names.lora_b(target.module)):
            if name == "ffa_lora" and names.is_lora_a(key):
                np.testing.assert_array_equal(new[key], old.adapter[key])
                continue
            parts = [padded(target, one, key) for one in sent]
            total = sum(one.num_examples * value for one, (value, _, _) in zip(sent, parts, strict=True))
            weight = sum(one.num_examples * element for one, (_, _, element) in zip(sent, parts, strict=True))
            expected = np.where(np.asarray(weight) > 0, total / np.maximum(weight, 1), old.adapter[key])
            assert_close(new[key].astype(np.float64), expected)


@settings(max_examples=25, deadline=None)
@given(sent=updates())
def test_hetlora_pads_with_zeros_and_weighs_by_norm(sent: list[DeviceUpdate]) -> None:
    old = before()
    new = aggregate("hetlora", old, sent).adapter
    sent = [one for one in sent if one.num_examples]
    for target in MANIFEST.targets:
        norms = [np.linalg.norm(product(target, dict(one.tensors))) for one in sent]
        for key in (names.lora_a(target.module), names.lora_b(target.module)):
            parts = [padded(target, one, key) for one in sent]
            total = sum(norm * value for norm, (value, _, _) in zip(norms, parts, strict=True))
            weight = np.asarray(sum(norm * held for norm, (_, held, _) in zip(norms, parts, strict=True)))
            is_held = np.any([element for _, _, element in parts], axis=0)
            expected = np.where(is_held, total / np.where(weight > 0, weight, 1.0), old.adapter[key])
            assert_close(new[key].astype(np.float64), expected)


def test_hetlora_of_untrained_adapters_goes_by_examples() -> None:
    sent = []
    for device_id, num_examples in (("a", 1), ("b", 3)):
        one = update(device_id, num_examples=num_examples, rank=RANK, seed=num_examples)
        tensors = {k: np.zeros_like(v) if "lora_B" in k else v for k, v in one.tensors.items()}
        sent.append(dataclasses.replace(one, tensors=tensors))
    new = aggregate("hetlora", before(), sent).adapter["up.lora_A.weight"]
    first, second = (one.tensors["up.lora_A.weight"].astype(np.float64) for one in sent)
    assert_close(new.astype(np.float64), 0.25 * first + 0.75 * second)


def test_averages_of_factors_are_not_the_average_of_products() -> None:
    """The reason for the other rules."""
    sent = [update("a", rank=RANK, seed=1), update("b", rank=RANK, seed=2)]
    new = aggregate("fedit", before(), sent)
    for target in MANIFEST.targets:
        mean = 0.5 * sum(product(target, dict(one.tensors)) for one in sent)
        assert np.abs(product(target, new) - mean).max() > 0.1
