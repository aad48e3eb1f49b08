"""Properties of every rule: order does not matter, coordinates that nobody holds stay, bad updates are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import AGGREGATIONS, Aggregated, DeviceUpdate, make_aggregation
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, restrict
from edge_runtime.formats.payload import check_merged
from tests.broker_server.methods.aggregation.samples import (
    FULL,
    HALF,
    MANIFEST,
    RANK,
    aggregate,
    assert_close,
    before,
    held,
    product,
    update,
    updates,
)

RULES = sorted(AGGREGATIONS)
MERGING = ("fedex_lora", "flora")
EXACT = (*MERGING, "fedspine", "fedspine_holders", "flexlora")
SEPARATE = ("fedit", "ffa_lora", "hetlora")

every_rule = pytest.mark.parametrize("name", RULES)


def assert_same(first: Aggregated, second: Aggregated) -> None:
    for key, value in first.adapter.items():
        np.testing.assert_array_equal(value, second.adapter[key])
    assert first.merged.keys() == second.merged.keys()
    for module, pair in first.merged.items():
        for mine, theirs in zip(pair, second.merged[module], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_rules_are_those_of_the_documentation() -> None:
    assert sorted([*EXACT, *SEPARATE]) == RULES


@every_rule
@settings(max_examples=25, deadline=None)
@given(sent=updates(), data=st.data())
def test_order_does_not_matter(name: str, sent: list[DeviceUpdate], data: st.DataObject) -> None:
    old = before(merged=True)
    assert_same(aggregate(name, old, sent), aggregate(name, old, data.draw(st.permutations(sent))))


@every_rule
@settings(max_examples=15, deadline=None)
@given(sent=updates())
def test_a_device_without_examples_counts_nothing(name: str, sent: list[DeviceUpdate]) -> None:
    idle = dataclasses.replace(update("idle", rank=RANK, seed=99), num_examples=0)
    assert_same(aggregate(name, before(), [*sent, idle]), aggregate(name, before(), sent))


@every_rule
@settings(max_examples=25, deadline=None)
@given(sent=updates())
def test_the_result_is_a_global_adapter(name: str, sent: list[DeviceUpdate]) -> None:
    new = aggregate(name, before(merged=True), sent)
    AdapterLayout.of(MANIFEST, FULL, RANK).check(new.adapter)
    check_merged(MANIFEST, FULL, new.merged)
    assert list(new.adapter) == list(AdapterLayout.of(MANIFEST, FULL, RANK).shapes)
    arrays = [*new.adapter.values(), *(factor for pair in new.merged.values() for factor in pair)]
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in arrays)
    restrict(MANIFEST, new.adapter, HALF, 2)


@pytest.mark.parametrize("name", sorted(set(RULES) - set(MERGING)))
def test_other_rules_leave_merged_factors_as_they_are(name: str) -> None:
    old = before(merged=True)
    new = aggregate(name, old, [update("a")])
    assert_same(dataclasses.replace(new, adapter=old.adapter), old)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None)
@given(sent=updates())
def test_a_coordinate_that_nobody_holds_keeps_its_value(name: str, sent: list[DeviceUpdate]) -> None:
    old = before(merged=True, rank=10)  # nothing is cut
    new = aggregate(name, old, sent)
    for target in MANIFEST.targets:
        gone = ~np.any([held(target, one.plan) for one in sent if one.num_examples], axis=0)
        expected = product(target, old)
        tolerance = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(product(target, new)[gone], expected[gone], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SEPARATE)
@settings(max_examples=25, deadline=None)
@given(sent=updates())
def test_an_element_that_nobody_holds_keeps_its_value(name: str, sent: list[DeviceUpdate]) -> None:
    old = before()
    new = aggregate(name, old, sent)
    counted = [one for one in sent if one.num_examples]
    rank = max(one.rank for one in counted)
    for target in MANIFEST.targets:
        a, b = names.lora_a(target.module), names.lora_b(target.module)
        columns, rows = (np.any([held(target, one.plan).any(axis=axis) for one in counted], axis=0) for axis in (0, 1))
        for key, gone in ((a, ~columns), (b, ~rows)):
            where = (slice(None), gone) if key == a else (gone, slice(None))
            np.testing.assert_array_equal(new.adapter[key][where], old.adapter[key][where])
        np.testing.assert_array_equal(new.adapter[a][rank:], old.adapter[a][rank:])
        np.testing.assert_array_equal(new.adapter[b][:, rank:], old.adapter[b][:, rank:])


@every_rule
def test_dense_tensors_are_averaged_by_examples(name: str) -> None:
    sent = [update("a", num_examples=1, seed=1), update("b", num_examples=3, seed=2, plan=HALF)]
    new = aggregate(name, before(), sent).adapter["classifier.weight"]
    first, second = (one.tensors["classifier.weight"] for one in sent)
    assert_close(new.astype(np.float64), 0.25 * first.astype(np.float64) + 0.75 * second)


@every_rule
def test_devices_that_learnt_nothing_change_nothing(name: str) -> None:
    start = before(merged=True)
    start = dataclasses.replace(
        start, adapter={k: np.zeros_like(v) if "lora_B" in k else v for k, v in start.adapter.items()}
    )
    sent = [
        dataclasses.replace(
            update(device_id, rank=rank, plan=plan), tensors=restrict(MANIFEST, start.adapter, plan, rank)
        )
        for device_id, rank, plan in (("a", 2, HALF), ("b", 4, FULL))
    ]
    new = aggregate(name, start, sent)
    for target in MANIFEST.targets:
        assert_close(product(target, new), product(target, start))
        assert np.all(np.linalg.norm(new.adapter[names.lora_a(target.module)], axis=1) > 0.1)  # it can be trained


def spoilt(key: str, value: npt.NDArray[np.float32]) -> DeviceUpdate:
    good = update("bad")
    return dataclasses.replace(good, tensors={**good.tensors, key: value})


NAN = np.full((8, 2), np.nan, np.float32)
SCORES = {
    "missing": np.ones(3, np.float32),
    "infinite": np.full(4, np.inf, np.float32),
    "negative": np.full(4, -1.0, np.float32),
}


@every_rule
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([], "no update"),
        ([update("bad", num_examples=0)], "total weight is zero"),
        ([update("bad", num_examples=-1)], "bad has -1 examples"),
        ([update("bad"), update("bad")], "bad has two updates"),
        ([update("good"), spoilt("mixer.lora_B.weight", NAN)], "bad.*'mixer.lora_B.weight'.*finite"),
        ([update("good"), spoilt("mixer.lora_B.weight", NAN[:1])], "bad.*'mixer.lora_B.weight'.*shape"),
        ([update("good"), spoilt("other", NAN)], "bad.*'other'"),
        ([update("bad", rank=RANK + 1)], "bad has rank 5"),
        *(
            ([dataclasses.replace(update("bad"), importance={(0, "heads"): scores})], "bad.*layer 0, heads.*need 4")
            for scores in SCORES.values()
        ),
        ([dataclasses.replace(update("bad"), importance={(9, "heads"): SCORES["missing"]})], "bad.*layer 9, heads"),
    ],
    ids=[
        *("none", "no weight", "negative weight", "twice", "not finite", "shape", "name", "rank"),
        *(f"scores {kind}" for kind in SCORES),
        "scores of no group",
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(name: str, sent: list[DeviceUpdate], said: str) -> None:
    with pytest.raises(AggregationError, match=said) as caught:
        aggregate(name, before(), sent)
    assert caught.value.device_id == (None if said in {"no update", "total weight is zero"} else "bad")


def test_a_factor_that_is_not_trained_is_not_taken() -> None:
    with pytest.raises(AggregationError, match="lora_A") as caught:
        make_aggregation("ffa_lora").aggregate(MANIFEST, before(), [update("bad")], np.random.default_rng(0))
    assert caught.value.device_id == "bad"


@every_rule
def test_a_global_adapter_of_another_model_is_refused(name: str) -> None:
    old = before(merged=True)
    with pytest.raises(AggregationError, match=r"classifier\.weight"):
        aggregate(name, Aggregated(adapter={k: v for k, v in old.adapter.items() if "class" not in k}), [update("a")])
    with pytest.raises(AggregationError, match="elsewhere"):
        aggregate(name, Aggregated(adapter=old.adapter, merged={"elsewhere": old.merged["mixer"]}), [update("a")])


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="fedex_lora, fedit, fedspine, fedspine_holders, ffa_lora, flexlora, flora, hetlora"
    ):
        make_aggregation("median")
