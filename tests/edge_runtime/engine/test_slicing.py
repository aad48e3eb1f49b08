"""Slicing: what a plan removes is gone, what it keeps is unchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats.plan import Plan

MakeArtifact = Callable[..., Artifact]


def test_full_plan_gives_views_of_the_float32_weights(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    weights = slice_weights(artifact, Plan.full(artifact.manifest))
    for spec in artifact.manifest.tensors:
        shared = np.shares_memory(weights[spec.name], artifact.stored(spec))
        assert shared == (spec.dtype == "float32")
        np.testing.assert_array_equal(weights[spec.name], artifact.stored(spec))


def test_all_weights_are_contiguous_float32(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    plan = Plan.from_kept(artifact.manifest, {(0, "heads"): [0, 2], (1, "channels"): [4]})
    for value in slice_weights(artifact, plan).values():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous


def test_layers_are_sliced_each_by_their_own_units(make_artifact: MakeArtifact) -> None:
    artifact = make_artifact()
    plan = Plan.from_kept(artifact.manifest, {(0, "heads"): [1], (1, "heads"): [0, 2]})
    weights = slice_weights(artifact, plan)
    whole = slice_weights(artifact, Plan.full(artifact.manifest))
    np.testing.assert_array_equal(weights["layer.0.query"], whole["layer.0.query"][2:4])
    np.testing.assert_array_equal(weights["layer.1.query"], whole["layer.1.query"][[0, 1, 4, 5]])


@pytest.fixture
def artifact(make_artifact: MakeArtifact) -> Artifact:
    return make_artifact()


_units = st.integers(1, 7).map(lambda bits: [u for u in range(3) if bits >> u & 1])
_channels = st.integers(1, 31).map(lambda bits: [u for u in range(5) if bits >> u & 1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(heads=_units, channels=_channels)
def test_both_axes_shrink_together(artifact: Artifact, heads: list[int], channels: list[int]) -> None:
    plan = Plan.from_kept(artifact.manifest, {(0, "heads"): heads, (0, "channels"): channels})
    rows = [2 * u + k for u in heads for k in range(2)]
    expected = artifact.weight(artifact.manifest.tensors[2])[np.ix_(rows, channels)].astype(np.float32)
    np.testing.assert_array_equal(slice_weights(artifact, plan)["layer.0.both"], expected)
