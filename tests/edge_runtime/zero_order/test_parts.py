"""Every B factor and dense tensor is in one part, at its place in the flat vector; no A factor is in any."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.zero_order.parts import TunedParts, count_elements

HEAD = ["classifier.weight", "classifier.bias"]
LOWER = ["l0.q.lora_B.weight", "l0.down.lora_B.weight"]
UPPER = ["l1.q.lora_B.weight", "l1.down.lora_B.weight"]


@pytest.mark.parametrize(
    ("cut", "lower", "upper"),
    [(0, [], [*LOWER, *UPPER, *HEAD]), (1, LOWER, [*UPPER, *HEAD]), (2, [*LOWER, *UPPER], HEAD)],
)
def test_parts_meet_at_the_cut(manifest: Manifest, cut: int, lower: list[str], upper: list[str]) -> None:
    parts = TunedParts.of(manifest, 2, cut)
    assert [tensor.name for tensor in parts.part("lower")] == lower
    assert [tensor.name for tensor in parts.part("upper")] == upper
    assert count_elements((*parts.lower, *parts.upper)) == 2 * (12 + 6) * 2 + 2 * 6 + 2


def test_places_and_indices_are_those_of_the_flat_vector(manifest: Manifest) -> None:
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 3)
    flat = np.arange(layout.num_elements, dtype=np.float32)
    tensors = layout.unflatten(flat)
    parts = TunedParts.of(manifest, 3, 1)
    assert parts.num_elements == layout.num_elements
    for tensor in (*parts.lower, *parts.upper):
        assert np.array_equal(flat[tensor.place].reshape(tensor.shape), tensors[tensor.name])
        assert list(tensors)[tensor.index] == tensor.name


@pytest.mark.parametrize("cut", [-1, 3])
def test_a_cut_outside_the_stack_is_refused(manifest: Manifest, cut: int) -> None:
    with pytest.raises(TensorError, match=rf"the cut is {cut}, expected 0 to 2"):
        TunedParts.of(manifest, 2, cut)


def test_something_must_be_tuned_above_the_cut(manifest: Manifest) -> None:
    headless = structs.replace(manifest, dense=())
    assert TunedParts.of(headless, 2, 1).upper
    with pytest.raises(TensorError, match="nothing above a cut of 2 is tuned"):
        TunedParts.of(headless, 2, 2)
