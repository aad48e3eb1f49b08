from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout, initial, restrict, shrink
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan

Tensors = dict[str, npt.NDArray[np.float32]]


def draw_plan(data: st.DataObject, manifest: Manifest) -> Plan:
    kept = {
        (g.layer, g.group): sorted(data.draw(st.sets(st.integers(0, g.num_units - 1), min_size=1)))
        for g in manifest.groups
    }
    return Plan.from_kept(manifest, kept)


def random_tensors(layout: AdapterLayout, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in layout.shapes.items()}


@given(st.data(), st.integers(1, 9), st.integers(0, 99))
def test_flattening_is_undone_by_unflattening(manifest: Manifest, data: st.DataObject, rank: int, seed: int) -> None:
    layout = AdapterLayout.of(manifest, draw_plan(data, manifest), rank)
    tensors = random_tensors(layout, seed)
    flat = layout.flatten(tensors)
    again = layout.unflatten(flat)
    assert flat.shape == (layout.num_elements,)
    assert list(again) == list(tensors)
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_the_order_is_that_of_the_manifest(manifest: Manifest) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    assert list(layout.shapes.items())[:3] == [
        ("l0.q.lora_A.weight", (2, 6)),
        ("l0.q.lora_B.weight", (12, 2)),
        ("l0.down.lora_A.weight", (2, 10)),
    ]
    assert list(layout.shapes)[-2:] == ["classifier.weight", "classifier.bias"]
    assert layout.sizes.tolist()[:3] == [12, 24, 20]


def test_unflattened_tensors_are_views(manifest: Manifest) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    flat = layout.flatten(random_tensors(layout))
    layout.unflatten(flat)["l0.q.lora_A.weight"][0, 0] = 42
    assert flat[0] == 42


@given(st.data(), st.integers(1, 4), st.integers(4, 8))
def test_a_restriction_has_the_layout_of_its_plan(
    manifest: Manifest, data: st.DataObject, rank: int, full_rank: int
) -> None:
    plan = draw_plan(data, manifest)
    full = random_tensors(AdapterLayout.of(manifest, Plan.full(manifest), full_rank))
    part = restrict(manifest, full, plan, rank)
    AdapterLayout.of(manifest, plan, rank).check(part)
    assert list(part) == list(AdapterLayout.of(manifest, plan, rank).shapes)


@given(st.data(), st.integers(1, 4))
def test_restricting_keeps_coordinates_and_leading_components(
    manifest: Manifest, data: st.DataObject, rank: int
) -> None:
    plan = draw_plan(data, manifest)
    full = random_tensors(AdapterLayout.of(manifest, Plan.full(manifest), 4))
    part = restrict(manifest, full, plan, rank)
    rows = plan.kept(1, "heads")[:, None] * 3 + np.arange(3)
    columns = plan.kept(1, "channels")
    assert np.array_equal(part["l1.q.lora_B.weight"], full["l1.q.lora_B.weight"][rows.reshape(-1), :rank])
    assert np.array_equal(part["l1.q.lora_A.weight"], full["l1.q.lora_A.weight"][:rank])
    assert np.array_equal(part["l1.down.lora_A.weight"], full["l1.down.lora_A.weight"][:rank][:, columns])
    assert np.array_equal(part["classifier.bias"], full["classifier.bias"])


def test_restricting_to_everything_changes_nothing_and_copies(manifest: Manifest) -> None:
    full = random_tensors(AdapterLayout.of(manifest, Plan.full(manifest), 3))
    part = restrict(manifest, full, Plan.full(manifest), 3)
    assert all(np.array_equal(part[name], full[name]) for name in full)
    assert not any(np.shares_memory(part[name], full[name]) for name in full)


def test_a_rank_larger_than_the_adapters_is_refused(manifest: Manifest) -> None:
    full = random_tensors(AdapterLayout.of(manifest, Plan.full(manifest), 3))
    with pytest.raises(TensorError, match="rank 3 cannot be restricted to rank 4"):
        restrict(manifest, full, Plan.full(manifest), 4)


@pytest.mark.parametrize("rank", [0, -1, limits.MAX_RANK + 1])
def test_ranks_out_of_range_are_refused(manifest: Manifest, rank: int) -> None:
    with pytest.raises(TensorError, match="LoRA rank"):
        AdapterLayout.of(manifest, Plan.full(manifest), rank)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("l0.q.lora_A.weight", None, "other tensors"),
        ("stranger", np.zeros(1, np.float32), "'stranger'"),
        ("l0.q.lora_A.weight", np.zeros((3, 6), np.float32), r"has shape \(3, 6\)"),
        ("l0.q.lora_A.weight", np.zeros((2, 6), np.int64), "expected a float"),
        ("l0.q.lora_A.weight", np.full((2, 6), np.nan, np.float32), "not finite"),
        ("classifier.bias", np.array([0, np.inf], np.float32), "not finite"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(
    manifest: Manifest, name: str, value: npt.NDArray[np.float32] | None, expected: str
) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    tensors = random_tensors(layout)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(TensorError, match=expected):
        layout.flatten(tensors)


def test_a_vector_of_another_length_is_refused(manifest: Manifest) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    with pytest.raises(TensorError, match="flat adapter has shape"):
        layout.unflatten(np.zeros(layout.num_elements + 1, np.float32))


def test_a_fresh_adapter_changes_nothing(manifest: Manifest) -> None:
    dense = {"classifier.weight": np.ones((2, 6), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    fresh = initial(manifest, dense, 4, np.random.default_rng(0))
    assert not fresh["l0.q.lora_B.weight"].any()
    assert np.abs(fresh["l0.q.lora_A.weight"]).max() <= 1 / np.sqrt(6)
    assert fresh["l0.q.lora_A.weight"].any()
    assert np.array_equal(fresh["classifier.weight"], dense["classifier.weight"])


@given(st.data())
def test_shrinking_twice_is_restricting_once(manifest: Manifest, data: st.DataObject) -> None:
    plan = draw_plan(data, manifest)
    smaller = Plan.from_kept(
        manifest,
        {
            (g.layer, g.group): sorted(
                data.draw(st.sets(st.sampled_from(plan.kept(g.layer, g.group).tolist()), min_size=1))
            )
            for g in manifest.groups
        },
    )
    full = random_tensors(AdapterLayout.of(manifest, Plan.full(manifest), 3))
    shrunk = shrink(manifest, restrict(manifest, full, plan, 3), plan, smaller)
    expected = restrict(manifest, full, smaller, 3)
    assert list(shrunk) == list(expected)
    assert all(np.array_equal(shrunk[name], expected[name]) for name in expected)


def test_what_is_trained_keeps_the_order(manifest: Manifest) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    assert layout.trained("all") == layout
    kept = [name for name in layout.shapes if not name.endswith("lora_A.weight")]
    assert list(layout.trained("lora_b").shapes) == kept
    assert kept[-1] == "classifier.bias"


def test_parts_are_the_blocks_tensors_and_what_is_dense(manifest: Manifest) -> None:
    kept = {(1, "heads"): [0, 2], (0, "channels"): [1]}
    layout = AdapterLayout.of(manifest, Plan.from_kept(manifest, kept), 3)
    tensors = random_tensors(layout)
    flat, parts = layout.flatten(tensors), layout.parts(manifest)
    for layer, (where, sizes) in enumerate(zip(parts.blocks, parts.block_sizes, strict=True)):
        expected = [value.reshape(-1) for name, value in tensors.items() if name.startswith(f"l{layer}.")]
        assert np.array_equal(flat[where], np.concatenate(expected))
        assert sizes.tolist() == [value.size for value in expected]
    dense = [value.reshape(-1) for name, value in tensors.items() if name.startswith("classifier.")]
    assert np.array_equal(flat[parts.dense], np.concatenate(dense))
    assert parts.dense_sizes.tolist() == [value.size for value in dense]
