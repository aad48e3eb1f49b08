from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire import ranking
from edge_runtime.wire.errors import PlanError
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.plan import uniform_num_kept

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
    assert larger.is_within(smaller)


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
