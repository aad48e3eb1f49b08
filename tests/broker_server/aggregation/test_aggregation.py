"""Aggregation: coordinates are divided by what is held, whatever the ranks and plans, and bad updates are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.aggregation import AGGREGATIONS, Aggregated, DeviceUpdate, make_aggregation
from broker_server.aggregation.factorise import ROW_NORM
from broker_server.errors import AggregationError, ConfigError
from edge_runtime.wire import names
from edge_runtime.wire.adapter import restrict, target_indices
from edge_runtime.wire.manifest import TargetSpec
from edge_runtime.wire.plan import Plan
from edge_runtime.wire.ranking import plan_at
from tests.broker_server import tiny

MANIFEST = tiny.manifest()
FULL = Plan.full(MANIFEST)
Float64 = npt.NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def aggregate(name: str, old: tiny.Adapter, updates: Sequence[DeviceUpdate]) -> dict[str, npt.NDArray[np.float32]]:
    return dict(make_aggregation(name).aggregate(MANIFEST, Aggregated(adapter=old), updates, rng()).adapter)


def update(device_id: str, *, ratio: float = 0.0, rank: int = 2, num_examples: int = 5, seed: int = 0) -> DeviceUpdate:
    plan = plan_at(MANIFEST, tiny.importance(), ratio)
    return DeviceUpdate(
        device_id=device_id,
        plan=plan,
        rank=rank,
        num_examples=num_examples,
        tensors=tiny.adapter(plan, rank, rng(seed)),
    )


@st.composite
def any_updates(draw: st.DrawFn) -> list[DeviceUpdate]:
    """One to five devices of different ranks, plans (not nested) and weights, at least one of which counts."""
    out = []
    for index in range(draw(st.integers(1, 5))):
        kept = {
            (g.layer, g.group): sorted(draw(st.sets(st.integers(0, g.num_units - 1), min_size=1)))
            for g in MANIFEST.groups
        }
        plan, rank = Plan.from_kept(MANIFEST, kept), draw(st.integers(1, 4))
        num_examples = draw(st.integers(1 if index == 0 else 0, 1000))
        tensors = tiny.adapter(plan, rank, rng(draw(st.integers(0, 2**32 - 1))))
        out.append(
            DeviceUpdate(device_id=f"board-{index}", plan=plan, rank=rank, num_examples=num_examples, tensors=tensors)
        )
    return out


def product(target: TargetSpec, tensors: tiny.Adapter) -> Float64:
    a, b = tensors[names.lora_a(target.module)], tensors[names.lora_b(target.module)]
    return b.astype(np.float64) @ a.astype(np.float64)


def dense_sum(target: TargetSpec, old: tiny.Adapter, updates: Sequence[DeviceUpdate]) -> Float64:
    """The definition, element by element of the whole matrix."""
    total = np.zeros((target.out_features, target.in_features))
    weight = np.zeros_like(total)
    for one in updates:
        rows, columns = target_indices(target, one.plan)
        held = np.ix_(
            np.arange(target.out_features) if rows is None else rows,
            np.arange(target.in_features) if columns is None else columns,
        )
        total[held] += one.num_examples * product(target, dict(one.tensors))
        weight[held] += one.num_examples
    return np.where(weight > 0, total / np.maximum(weight, 1), product(target, old))


@settings(max_examples=60, deadline=None)
@given(updates=any_updates())
def test_flexlora_is_the_dense_sum_over_what_is_held(updates: list[DeviceUpdate]) -> None:
    rank = 4 + sum(one.rank for one in updates)  # old factors and all devices fit: nothing is cut
    old = tiny.adapter(FULL, rank, rng(7))
    old = {name: value * (0.0 if "mixer" in name else 1.0) for name, value in old.items()}
    new = aggregate("flexlora", old, updates)
    for target in MANIFEST.targets:
        expected = dense_sum(target, old, updates)
        np.testing.assert_allclose(product(target, new), expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@settings(max_examples=40, deadline=None)
@given(updates=any_updates(), name=st.sampled_from(sorted(AGGREGATIONS)), data=st.data())
def test_order_does_not_matter(updates: list[DeviceUpdate], name: str, data: st.DataObject) -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    shuffled = data.draw(st.permutations(updates))
    first, second = aggregate(name, old, updates), aggregate(name, old, shuffled)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


@settings(max_examples=40, deadline=None)
@given(updates=any_updates())
def test_fedit_averages_each_element_over_its_holders(updates: list[DeviceUpdate]) -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    new = aggregate("fedit", old, updates)
    target = MANIFEST.targets[1]  # rows of B are pruned
    key = names.lora_b(target.module)
    for row in range(target.out_features):
        for component in range(4):
            values, weights = [], []
            for one in updates:
                rows, _ = target_indices(target, one.plan)
                assert rows is not None
                if one.num_examples and row in rows and component < one.rank:
                    values.append(one.tensors[key][list(rows).index(row), component])
                    weights.append(one.num_examples)
            expected = np.average(values, weights=weights) if values else old[key][row, component]
            assert new[key][row, component] == pytest.approx(expected, abs=1e-5)


def test_fedit_of_equal_plans_and_ranks_is_the_plain_average() -> None:
    updates = [update("a", num_examples=1, seed=1), update("b", num_examples=3, seed=2)]
    new = aggregate("fedit", tiny.adapter(FULL, 2, rng(7)), updates)
    for key, value in new.items():
        np.testing.assert_allclose(value, 0.25 * updates[0].tensors[key] + 0.75 * updates[1].tensors[key], atol=1e-6)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_what_nobody_holds_keeps_its_value(name: str) -> None:
    old = tiny.adapter(FULL, 2, rng(7))
    plan = plan_at(MANIFEST, tiny.importance(), 0.5)
    pruned = update("a", ratio=0.5)
    new = aggregate(name, {**old}, [pruned])
    if name == "fedit":
        key, (rows, _) = names.lora_b(MANIFEST.targets[1].module), target_indices(MANIFEST.targets[1], plan)
        assert rows is not None
        gone = np.setdiff1d(np.arange(old[key].shape[0]), rows)
        assert gone.size
        np.testing.assert_array_equal(new[key][gone], old[key][gone])
        return
    wide = {k: np.concatenate([v, np.zeros_like(v)], axis=0 if "lora_A" in k else 1) for k, v in old.items()}
    wide["classifier.weight"] = old["classifier.weight"]
    new = aggregate(name, wide, [pruned])
    for target in MANIFEST.targets:
        rows, columns = target_indices(target, plan)
        if rows is not None:
            gone = np.setdiff1d(np.arange(target.out_features), rows)
            np.testing.assert_allclose(product(target, new)[gone], product(target, old)[gone], atol=1e-5)
        if columns is not None:
            gone = np.setdiff1d(np.arange(target.in_features), columns)
            np.testing.assert_allclose(product(target, new)[:, gone], product(target, old)[:, gone], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(updates=any_updates(), rank=st.integers(4, 6))
def test_flexlora_cuts_to_the_best_approximation(updates: list[DeviceUpdate], rank: int) -> None:
    old = tiny.adapter(FULL, rank, rng(7))
    new = aggregate("flexlora", old, updates)
    for target in MANIFEST.targets:
        expected = dense_sum(target, old, updates)
        sizes = np.linalg.svd(expected, compute_uv=False)
        error = np.linalg.norm(product(target, new) - expected)
        assert error == pytest.approx(np.sqrt(np.square(sizes[rank:]).sum()), abs=1e-4 * max(1.0, sizes[0]))


def test_rows_of_a_have_the_norm_of_a_fresh_one_and_the_leading_come_first() -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    new = aggregate("flexlora", old, [update("a", rank=4), update("b", rank=3)])
    a, b = new["mixer.lora_A.weight"], new["mixer.lora_B.weight"]
    np.testing.assert_allclose(a @ a.T, ROW_NORM**2 * np.eye(4), atol=1e-6)
    assert np.all(np.diff(np.linalg.norm(b, axis=0)) <= 1e-6)


def test_an_empty_component_can_be_trained_again() -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    new = aggregate("flexlora", old, [update("a", rank=1)])
    a, b = new["mixer.lora_A.weight"], new["mixer.lora_B.weight"]
    np.testing.assert_array_equal(b[:, 1:], 0.0)
    assert np.all(np.linalg.norm(a, axis=1) > 0.1)


def test_adapters_that_were_never_trained_stay_trainable() -> None:
    start = update("a", rank=2)
    zeros = {k: np.zeros_like(v) if "lora_B" in k else v for k, v in start.tensors.items()}
    new = aggregate("flexlora", tiny.adapter(FULL, 2, rng(7)), [dataclasses.replace(start, tensors=zeros)])
    assert all(np.all(v == 0) for k, v in new.items() if "lora_B" in k)
    assert all(np.all(np.linalg.norm(v, axis=1) > 0.1) for k, v in new.items() if "lora_A" in k)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_dense_tensors_are_averaged_by_examples(name: str) -> None:
    updates = [update("a", num_examples=1, seed=1), update("b", num_examples=3, seed=2, ratio=0.5)]
    new = aggregate(name, tiny.adapter(FULL, 2, rng(7)), updates)
    expected = 0.25 * updates[0].tensors["classifier.weight"] + 0.75 * updates[1].tensors["classifier.weight"]
    np.testing.assert_allclose(new["classifier.weight"], expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_result_can_be_restricted_to_any_arm(name: str) -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    new = aggregate(name, old, [update("a", rank=3), update("b", ratio=0.5)])
    plan = plan_at(MANIFEST, tiny.importance(), 0.5)
    restrict(MANIFEST, new, plan, 2)
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in new.values())


def spoilt(key: str, value: npt.NDArray[np.float32]) -> DeviceUpdate:
    good = update("bad")
    return dataclasses.replace(good, tensors={**good.tensors, key: value})


NAN = np.full((2, 4), np.nan, np.float32)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@pytest.mark.parametrize(
    ("updates", "said"),
    [
        ([], "no update"),
        ([update("bad", num_examples=0)], "total weight is zero"),
        ([update("bad", num_examples=-1)], "bad has -1 examples"),
        ([update("bad"), update("bad")], "bad has two updates"),
        ([update("good"), spoilt("mixer.lora_A.weight", NAN)], "bad.*'mixer.lora_A.weight'.*finite"),
        ([update("good"), spoilt("mixer.lora_A.weight", NAN[:1])], "bad.*'mixer.lora_A.weight'.*shape"),
        ([update("good"), spoilt("other", NAN)], "bad.*'other'"),
        ([update("bad", rank=5)], "bad has rank 5"),
    ],
    ids=["none", "no weight", "negative weight", "twice", "not finite", "shape", "name", "rank"],
)
def test_what_cannot_be_combined_is_refused_by_name(name: str, updates: list[DeviceUpdate], said: str) -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    with pytest.raises(AggregationError, match=said) as caught:
        aggregate(name, old, updates)
    assert caught.value.device_id == (None if said in {"no update", "total weight is zero"} else "bad")


def test_global_adapter_of_another_model_is_refused() -> None:
    old = tiny.adapter(FULL, 4, rng(7))
    del old["classifier.weight"]
    with pytest.raises(AggregationError, match=r"classifier\.weight"):
        aggregate("fedit", old, [update("a")])


def test_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fedit, flexlora"):
        make_aggregation("median")
