"""The exact rules against the definition, written down with dense matrices; and that they build none."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from broker_server.methods.aggregation import Aggregated, DeviceUpdate, change_norm, make_aggregation
from broker_server.methods.aggregation.factorise import ROW_NORM, compress
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, restrict
from edge_runtime.formats.manifest import TargetSpec
from edge_runtime.formats.plan import Plan
from tests.broker_server.methods.aggregation.samples import (
    HALF,
    MANIFEST,
    RANK,
    ROW_PRUNED,
    Float32,
    Float64,
    adapter,
    aggregate,
    assert_close,
    before,
    component_sum,
    dense_product,
    dense_sum,
    merged_product,
    plans,
    product,
    rng,
    update,
    updates,
)

ENOUGH = 10
"""A rank at which no product is cut."""


@pytest.mark.parametrize(("name", "rank"), [("flexlora", ENOUGH), ("flora", RANK)])
@settings(max_examples=40, deadline=None)
@given(sent=updates())
def test_adapter_and_merged_are_the_dense_sum_over_what_is_held(name: str, rank: int, sent: list[DeviceUpdate]) -> None:
    old = before(merged=True, rank=rank)
    new = aggregate(name, old, sent)
    for target in MANIFEST.targets:
        assert_close(product(target, new), dense_sum(target, old, sent) + merged_product(target, old))


@settings(max_examples=40, deadline=None)
@given(sent=updates())
def test_fedex_lora_is_the_dense_sum_over_the_components_that_are_held(sent: list[DeviceUpdate]) -> None:
    old = before(merged=True)
    new = aggregate("fedex_lora", old, sent)
    for target in MANIFEST.targets:
        assert_close(product(target, new), component_sum(target, old, sent) + merged_product(target, old))


@settings(max_examples=25, deadline=None)
@given(sent=updates(ranks=st.just(RANK)))
def test_at_equal_ranks_both_sums_are_the_same(sent: list[DeviceUpdate]) -> None:
    for target in MANIFEST.targets:
        assert_close(component_sum(target, before(), sent), dense_sum(target, before(), sent))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rank=st.integers(1, RANK))
def test_ffa_lora_is_the_dense_sum_at_equal_ranks(data: st.DataObject, rank: int) -> None:
    """All plans must be the same if columns are pruned."""
    old = before(rank=rank)
    sent = data.draw(updates(ranks=st.just(rank)))
    same = data.draw(updates(ranks=st.just(rank), plan=st.just(data.draw(plans()))))
    for target in MANIFEST.targets:
        chosen = sent if target in ROW_PRUNED else same
        shared = [frozen(one, old) for one in chosen]
        new = aggregate("ffa_lora", old, chosen)
        expected = dense_sum(target, old, shared)
        if target not in ROW_PRUNED:  # columns that nobody holds have the same B as the others
            mask = np.any([dense_product(target, one).any(axis=0) for one in shared], axis=0)
            assert_close(product(target, new)[:, mask], expected[:, mask])
        else:
            assert_close(product(target, new), expected)


def frozen(one: DeviceUpdate, old: Aggregated) -> DeviceUpdate:
    """The update with the A that its device was sent."""
    sent = restrict(MANIFEST, old.adapter, one.plan, one.rank)
    a = {key: value for key, value in sent.items() if names.is_lora_a(key)}
    return dataclasses.replace(one, tensors={**one.tensors, **a})


@pytest.mark.parametrize("name", ["flexlora", "fedspine", "fedspine_holders"])
@settings(max_examples=25, deadline=None)
@given(sent=updates(ranks=st.just(RANK)))
def test_decomposition_cuts_to_the_best_approximation(name: str, sent: list[DeviceUpdate]) -> None:
    sent = [dataclasses.replace(one, importance={}) for one in sent]
    old = before()
    new = aggregate(name, old, sent)
    counted = [one for one in sent if one.num_examples]
    for target in MANIFEST.targets:
        expected = component_sum(target, old, counted, absent_keep=name == "fedspine")
        sizes = np.linalg.svd(expected, compute_uv=False)
        error = np.linalg.norm(product(target, new) - expected)
        assert error == pytest.approx(np.sqrt(np.square(sizes[RANK:]).sum()), abs=1e-5 * max(1.0, sizes[0]))


@pytest.mark.parametrize("name", ["flexlora", "fedspine", "fedspine_holders"])
def test_rows_of_a_have_the_norm_of_a_fresh_one_and_the_leading_come_first(name: str) -> None:
    new = aggregate(name, before(), [update("a", rank=4), update("b", rank=3)]).adapter
    a, b = new["mixer.lora_A.weight"], new["mixer.lora_B.weight"]
    np.testing.assert_allclose(a @ a.T, ROW_NORM**2 * np.eye(4), atol=1e-6)
    assert np.all(np.diff(np.linalg.norm(b, axis=0)) <= 1e-6)


def test_an_empty_component_can_be_trained_again() -> None:
    new = aggregate("flexlora", before(), [update("a", rank=1)]).adapter
    np.testing.assert_array_equal(new["mixer.lora_B.weight"][:, 1:], 0.0)
    assert np.all(np.linalg.norm(new["mixer.lora_A.weight"], axis=1) > 0.1)


def test_flora_starts_every_round_anew() -> None:
    rule = make_aggregation("flora")
    state, seen = before(merged=True), []
    for round_number in range(1, 5):
        sent = [update("a", rank=3, seed=round_number), update("b", plan=HALF, rank=2, seed=10 + round_number)]
        state = rule.aggregate(MANIFEST, state, sent, rng(round_number))
        assert all(not value.any() for key, value in state.adapter.items() if "lora_B" in key)
        seen.append(state.adapter["mixer.lora_A.weight"])
    assert rule.restarts
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_merged_factors_stay_exact_and_small_over_rounds(name: str) -> None:
    state = before()
    expected = {target.module: product(target, state) for target in MANIFEST.targets}
    for seed in range(8):
        sent = [update("a", seed=seed), update("b", plan=HALF, rank=RANK, seed=50 + seed)]
        for target in MANIFEST.targets:
            exact_sum = dense_sum if name == "flora" else component_sum
            gain = exact_sum(target, state, sent) - product(target, dict(state.adapter))
            expected[target.module] = expected[target.module] + gain
        state = aggregate(name, state, sent)
    for target in MANIFEST.targets:
        assert_close(product(target, state), expected[target.module])
        assert state.merged[target.module][0].shape[0] <= min(target.in_features, target.out_features)


def test_equal_devices_leave_no_residual() -> None:
    sent = [update("a", rank=RANK), update("b", rank=RANK)]
    assert aggregate("fedex_lora", before(), sent).merged == {}


@given(st.integers(0, 99), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_compression_keeps_the_product_with_no_more_components_than_needed(seed: int, num: int, scale: float) -> None:
    generator = rng(seed)
    left, right = scale * generator.normal(size=(7, num)), generator.normal(size=(num, 9))
    a, b = compress(np.concatenate([left, left], axis=1), np.concatenate([right, right]))
    assert_close(b @ a / scale, 2 * left @ right / scale)
    assert a.shape[0] == min(7, num)
    assert compress(np.concatenate([left, -left], axis=1), np.concatenate([right, right]))[0].shape[0] == 0


@pytest.mark.parametrize("name", ["fedex_lora", "fedspine", "fedspine_holders", "flexlora", "flora"])
def test_the_dense_matrix_is_never_built(name: str) -> None:
    size, rank = 4000, 2  # dense: 128 MB
    target = TargetSpec(module="wide", layer=0, in_features=size, out_features=size)
    manifest = structs.replace(MANIFEST, targets=(target,), dense=())
    shapes = AdapterLayout.of(manifest, Plan.full(manifest), rank).shapes

    def random(seed: int) -> dict[str, Float32]:
        return {key: rng(seed).normal(size=shape).astype(np.float32) for key, shape in shapes.items()}

    sent = [
        DeviceUpdate(device_id=str(k), plan=Plan.full(manifest), rank=rank, num_examples=1, tensors=random(k))
        for k in range(3)
    ]
    tracemalloc.start()
    try:
        make_aggregation(name).aggregate(manifest, Aggregated(adapter=random(9)), sent, rng())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16e6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), plans(), st.integers(1, RANK))
def test_change_norm_is_that_of_the_dense_difference(seed: int, plan: Plan, rank: int) -> None:
    sent, received = adapter(plan, rank, seed), adapter(plan, rank, seed + 1)

    def total(after: dict[str, Float32]) -> float:
        squares: list[Float64] = [np.square(product(t, after) - product(t, sent)).sum() for t in MANIFEST.targets]
        return float(np.sqrt(sum(squares)))

    assert change_norm(MANIFEST, sent, received) == pytest.approx(total(received), rel=1e-6)
    only_b = {key: value for key, value in received.items() if not names.is_lora_a(key)}
    mixed = {**sent, **only_b}
    assert change_norm(MANIFEST, sent, only_b) == pytest.approx(total(mixed), rel=1e-6)
    assert change_norm(MANIFEST, sent, sent) == 0.0


def test_full_rank_devices_and_plans_give_the_plain_average() -> None:
    sent = [update("a", num_examples=1, rank=RANK, seed=1), update("b", num_examples=3, rank=RANK, seed=2)]
    new = aggregate("flora", before(), sent)
    for target in MANIFEST.targets:
        first, second = (product(target, dict(one.tensors)) for one in sent)
        assert_close(product(target, new), 0.25 * first + 0.75 * second)
