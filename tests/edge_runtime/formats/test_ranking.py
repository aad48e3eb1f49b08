from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import PlanError
from edge_runtime.formats import ranking
from edge_runtime.formats.manifest import GroupSpec, Manifest, Task
from edge_runtime.formats.plan import uniform_num_kept
from edge_runtime.formats.ranking import PlanPolicy

Scores = dict[tuple[int, str], npt.NDArray[np.float32]]


def draw_importance(data: st.DataObject, manifest: Manifest) -> Scores:
    """Few distinct values, so that ties are common."""
    values = st.sampled_from([0.0, 1.0, 2.0, -1.0])
    return {
        (g.layer, g.group): np.array(
            data.draw(st.lists(values, min_size=g.num_units, max_size=g.num_units)), np.float32
        )
        for g in manifest.groups
    }


@given(st.data(), st.floats(0, 0.99), st.floats(0, 0.99))
def test_plans_of_one_ranking_are_nested(manifest: Manifest, data: st.DataObject, one: float, other: float) -> None:
    importance = draw_importance(data, manifest)
    larger = ranking.plan_at(manifest, importance, max(one, other))
    smaller = ranking.plan_at(manifest, importance, min(one, other))
    larger.check_within(smaller)


@given(st.data(), st.floats(0, 0.99))
def test_what_stays_is_never_less_important_than_what_goes(
    manifest: Manifest, data: st.DataObject, ratio: float
) -> None:
    importance = draw_importance(data, manifest)
    plan = ranking.plan_at(manifest, importance, ratio)
    for spec in manifest.groups:
        scores = importance[spec.layer, spec.group]
        kept = plan.kept(spec.layer, spec.group)
        gone = np.setdiff1d(np.arange(spec.num_units), kept)
        assert kept.size == uniform_num_kept(spec, ratio)
        assert gone.size == 0 or scores[kept].min() >= scores[gone].max()


def test_ties_fall_to_the_unit_with_the_larger_index(manifest: Manifest) -> None:
    importance = {(g.layer, g.group): np.zeros(g.num_units, np.float32) for g in manifest.groups}
    assert ranking.plan_at(manifest, importance, 0.5).kept(0, "heads").tolist() == [0, 1]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratios_out_of_range_are_refused(manifest: Manifest, ratio: float) -> None:
    with pytest.raises(PlanError, match="expected 0 <= ratio < 1"):
        ranking.plan_at(manifest, {}, ratio)


@pytest.mark.parametrize("scores", [None, np.zeros(3, np.float32), np.full(4, np.nan, np.float32)], ids=str)
def test_scores_that_do_not_cover_a_group_are_refused(
    manifest: Manifest, scores: npt.NDArray[np.float32] | None
) -> None:
    importance = {(g.layer, g.group): np.zeros(g.num_units, np.float32) for g in manifest.groups}
    del importance[0, "heads"]
    if scores is not None:
        importance[0, "heads"] = scores
    with pytest.raises(PlanError, match="layer 0, heads: need 4 finite scores"):
        ranking.plan_at(manifest, importance, 0.5)


@given(st.data())
def test_importance_survives_the_round_trip(manifest: Manifest, data: st.DataObject) -> None:
    importance = draw_importance(data, manifest)
    again = ranking.from_tensors(ranking.to_tensors(importance))
    assert again.keys() == importance.keys()
    assert all(np.array_equal(again[key], importance[key]) for key in importance)


@pytest.mark.parametrize("name", ["heads", "x.heads", ".heads", "-1.heads"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"<layer>\.<group>"):
        ranking.from_tensors({name: np.zeros(1, np.float32)})


# ---- policies --------------------------------------------------------------------------------------------------------


def layered(manifest: Manifest, num_layers: int, task: Task) -> Manifest:
    """Groups of a model of more layers; only they and the task matter for a plan."""
    groups = tuple(
        GroupSpec(layer=layer, group=group, num_units=num_units)
        for layer in range(num_layers)
        for group, num_units in (("heads", 4), ("channels", 10))
    )
    return msgspec.structs.replace(
        manifest,
        num_layers=num_layers,
        block_prefixes=("",) * num_layers,
        groups=groups,
        task=task,
        tensors=(),
        targets=(),
    )


def policies(num_layers: int) -> st.SearchStrategy[PlanPolicy]:
    return st.builds(
        PlanPolicy,
        scope=st.sampled_from(["layer", "global"]),
        protect_first=st.integers(-1, num_layers // 2 - 1),
        protect_last=st.integers(-1, num_layers // 2),
    )


TASKS: tuple[Task, ...] = ("text-classification", "causal-lm")
RATIOS = st.floats(0, 0.99)


@given(st.data(), st.sampled_from(TASKS), policies(6), RATIOS, RATIOS)
def test_plans_of_one_ranking_are_nested_under_every_policy(
    manifest: Manifest, data: st.DataObject, task: Task, policy: PlanPolicy, one: float, other: float
) -> None:
    model = layered(manifest, 6, task)
    importance = draw_importance(data, model)
    larger = ranking.plan_at(model, importance, max(one, other), policy)
    smaller = ranking.plan_at(model, importance, min(one, other), policy)
    larger.check_within(smaller)


@given(st.data(), st.sampled_from(TASKS), policies(6), RATIOS)
def test_protected_layers_stay_whole_but_for_the_heads_of_a_decoder(
    manifest: Manifest, data: st.DataObject, task: Task, policy: PlanPolicy, ratio: float
) -> None:
    model = layered(manifest, 6, task)
    plan = ranking.plan_at(model, draw_importance(data, model), ratio, policy)
    resolved = policy.resolved(6)
    for layer in (*range(resolved.protect_first), *range(6 - resolved.protect_last, 6)):
        assert plan.kept(layer, "channels").size == 10
        assert task == "causal-lm" or plan.kept(layer, "heads").size == 4
    if task == "causal-lm":
        assert len({plan.kept(layer, "heads").size for layer in range(6)}) == 1


@given(st.data(), st.sampled_from(["layer", "global"]), RATIOS)
def test_what_protected_layers_keep_is_removed_from_the_others(
    manifest: Manifest, data: st.DataObject, scope: Literal["layer", "global"], ratio: float
) -> None:
    model = layered(manifest, 6, "text-classification")
    policy = PlanPolicy(scope=scope, protect_last=1)
    plan = ranking.plan_at(model, draw_importance(data, model), ratio, policy)
    removed = sum(10 - plan.kept(layer, "channels").size for layer in range(6))
    most = 5 * (10 - 1)  # five layers keep one unit each
    rounding = 0.5 if scope == "global" else 5 * 0.5
    assert abs(removed - min(ratio * 60, most)) <= rounding + 1e-9


def test_units_of_all_layers_compete_where_the_scope_is_global(manifest: Manifest) -> None:
    model = layered(manifest, 2, "text-classification")
    importance = {(g.layer, g.group): np.full(g.num_units, 1.0 + g.layer, np.float32) for g in model.groups}
    plan = ranking.plan_at(model, importance, 0.5, PlanPolicy(scope="global"))
    assert plan.kept(0, "channels").tolist() == [0]  # one stays in every layer
    assert plan.kept(1, "channels").tolist() == list(range(9))


@pytest.mark.parametrize(("num_layers", "first", "last"), [(2, 0, 0), (4, 0, 0), (6, 0, 1), (12, 1, 1), (32, 3, 1)])
def test_automatic_protection_follows_the_depth(num_layers: int, first: int, last: int) -> None:
    policy = PlanPolicy(protect_first=-1, protect_last=-1).resolved(num_layers)
    assert (policy.protect_first, policy.protect_last) == (first, last)


@pytest.mark.parametrize("policy", [PlanPolicy(protect_first=2), PlanPolicy(protect_last=-2)], ids=str)
def test_a_policy_that_leaves_nothing_to_prune_is_refused(manifest: Manifest, policy: PlanPolicy) -> None:
    importance = {(g.layer, g.group): np.zeros(g.num_units, np.float32) for g in manifest.groups}
    with pytest.raises(PlanError, match="one layer or more must be left"):
        ranking.plan_at(manifest, importance, 0.5, policy)


@given(policies(6))
def test_a_policy_survives_as_metadata(policy: PlanPolicy) -> None:
    assert PlanPolicy.from_metadata({**policy.to_metadata(), "other": "x"}) == policy


def test_metadata_of_another_policy_is_refused() -> None:
    assert PlanPolicy.from_metadata({}) == PlanPolicy()
    with pytest.raises(PlanError, match="no plan policy"):
        PlanPolicy.from_metadata({"scope": "tensor"})


@pytest.mark.parametrize("name", ["\u00b2.heads", "9" * 5_000 + ".heads", "-1.heads", "heads", "01.heads"], ids=ascii)
def test_names_of_importance_that_are_no_layer_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match="is not named"):
        ranking.from_tensors({name: np.zeros(1, np.float32)})


@pytest.mark.parametrize("value", ["9" * 5_000, "1e3", "nan", str(2**63), "-100000"], ids=lambda value: value[:8])
def test_policies_out_of_range_are_refused(value: str) -> None:
    with pytest.raises(PlanError, match="no plan policy"):
        PlanPolicy.from_metadata({"protect_first": value})
