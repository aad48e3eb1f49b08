from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import PlanError
from edge_runtime.formats.manifest import GroupSpec, Manifest, PruneAxis
from edge_runtime.formats.plan import KeptUnits, PackedPlan, Plan, uniform_num_kept


def draw_plan(data: st.DataObject, manifest: Manifest) -> tuple[Plan, dict[tuple[int, str], list[int]]]:
    kept = {
        (g.layer, g.group): sorted(data.draw(st.sets(st.integers(0, g.num_units - 1), min_size=1)))
        for g in manifest.groups
    }
    return Plan.from_kept(manifest, kept), kept


@given(st.data())
def test_a_plan_keeps_what_it_was_made_of(manifest: Manifest, data: st.DataObject) -> None:
    plan, kept = draw_plan(data, manifest)
    assert {key: units.tolist() for key, units in plan.units.items()} == kept
    assert all(np.array_equal(plan.kept(*key), units) for key, units in plan.units.items())


@given(st.data())
def test_a_plan_survives_the_round_trip(manifest: Manifest, data: st.DataObject) -> None:
    plan, kept = draw_plan(data, manifest)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(plan.packed), type=PackedPlan)
    assert again.digest() == plan.packed.digest()
    assert again.open(manifest) == plan
    assert {key: units.tolist() for key, units in again.open(manifest).units.items()} == kept


@given(st.data())
def test_indices_are_whole_units(manifest: Manifest, data: st.DataObject) -> None:
    plan, kept = draw_plan(data, manifest)
    for target in manifest.targets:
        for prune in (target.in_prune, target.out_prune):
            if prune is not None:
                units = kept[target.layer, prune.group]
                expected = [u * prune.unit_size + i for u in units for i in range(prune.unit_size)]
                assert plan.indices(target.layer, prune).tolist() == expected


@given(st.data())
def test_sparsity_counts_elements(manifest: Manifest, data: st.DataObject) -> None:
    plan, kept = draw_plan(data, manifest)
    stay = sum(len(kept[layer, "heads"]) * 3 * 6 + len(kept[layer, "channels"]) * 6 for layer in range(2))
    assert plan.sparsity(manifest) == pytest.approx(1 - stay / (2 * (72 + 60)))


def test_the_full_plan_removes_nothing(manifest: Manifest) -> None:
    assert Plan.full(manifest).sparsity(manifest) == 0.0


@given(st.data())
def test_every_plan_is_within_the_full_one(manifest: Manifest, data: st.DataObject) -> None:
    draw_plan(data, manifest)[0].check_within(Plan.full(manifest))


@pytest.mark.parametrize("units", [[], [-1], [4], [0, 99]], ids=str)
def test_units_outside_their_group_are_refused(manifest: Manifest, units: list[int]) -> None:
    with pytest.raises(PlanError, match="units must be"):
        Plan.from_kept(manifest, {(0, "heads"): units})


def test_groups_that_the_model_lacks_are_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="model lacks"):
        Plan.from_kept(manifest, {(2, "heads"): [0]})


def entry(**changed: object) -> KeptUnits:
    fields = {"layer": 0, "group": "heads", "num_units": 4, "bitmap": b"\x0f", **changed}
    return msgspec.convert(fields, KeptUnits)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"bitmap": b"\x00"}, "keeps nothing"),
        ({"bitmap": b"\xf0"}, "keeps nothing"),
        ({"bitmap": b""}, "malformed"),
        ({"bitmap": b"\x0f\x00"}, "malformed"),
        ({"num_units": 5}, "another model"),
        ({"layer": 1}, "another model"),
        ({"group": "channels"}, "another model"),
    ],
    ids=str,
)
def test_a_plan_from_outside_is_checked(manifest: Manifest, changed: dict[str, object], expected: str) -> None:
    groups = (entry(**changed), *Plan.full(manifest).packed.groups[1:])
    with pytest.raises(PlanError, match=expected):
        PackedPlan(groups=groups).open(manifest)


def test_a_plan_with_too_few_groups_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="another model"):
        PackedPlan(groups=Plan.full(manifest).packed.groups[:-1]).open(manifest)


def test_a_group_that_the_plan_lacks_is_named(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="'experts' in layer 0"):
        Plan.full(manifest).kept(0, "experts")


@given(st.integers(1, 2000), st.floats(0, 0.999))
def test_at_least_one_unit_stays_and_never_more_than_all(num_units: int, pruning_ratio: float) -> None:
    kept = uniform_num_kept(GroupSpec(layer=0, group="g", num_units=num_units), pruning_ratio)
    assert 1 <= kept <= num_units
    assert abs(kept - num_units * (1 - pruning_ratio)) <= 1


def test_bits_are_least_significant_first(manifest: Manifest) -> None:
    plan = Plan.from_kept(manifest, {(0, "channels"): np.array([0, 9])})
    assert plan.packed.groups[1].bitmap == b"\x01\x02"


def test_positions_are_those_within_a_larger_plan(manifest: Manifest) -> None:
    larger = Plan.from_kept(manifest, {(0, "heads"): [0, 2, 3], (1, "channels"): [1, 4, 6, 9]})
    smaller = Plan.from_kept(manifest, {(0, "heads"): [0, 3], (1, "channels"): [4, 9]})
    heads = PruneAxis(axis=0, group="heads", unit_size=3)
    assert smaller.positions(0, heads, larger).tolist() == [0, 1, 2, 6, 7, 8]
    assert np.array_equal(larger.indices(0, heads)[smaller.positions(0, heads, larger)], smaller.indices(0, heads))
    channels = PruneAxis(axis=1, group="channels", unit_size=1)
    assert smaller.positions(1, channels, larger).tolist() == [1, 3]


def test_a_plan_that_brings_units_back_is_no_shrinking(manifest: Manifest) -> None:
    larger = Plan.from_kept(manifest, {(0, "heads"): [0, 2]})
    Plan.from_kept(manifest, {(0, "heads"): [2]}).check_within(larger)
    larger.check_within(larger)
    with pytest.raises(PlanError, match=r"layer 0, heads keeps \[1\]"):
        Plan.from_kept(manifest, {(0, "heads"): [1, 2]}).check_within(larger)


def test_units_of_an_opened_plan_cannot_be_changed(manifest: Manifest) -> None:
    plan = Plan.full(manifest)
    for each in (plan, plan.packed.open(manifest)):
        for units in each.units.values():
            with pytest.raises(ValueError, match="read-only"):
                units[0] = 0
