"""Eight and four bits: how far off they are at most, and that pruning them is pruning what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import NF4_BLOCK_SIZE
from edge_runtime.formats.quantization import NF4, Kind, quantize

KINDS = [("int8", 1), ("nf4", 1), ("nf4", 0)]


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 2, (rows, 1)))
    return (rng.normal(0, 1, (rows, columns)) * spread).astype(np.float32)


@given(seed=st.integers(0, 50))
def test_int8_is_off_by_half_a_step_of_its_row(seed: int) -> None:
    weight = matrix(7, 33, seed)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(quantize(weight, "int8").float32() - weight) <= 0.501 * step).all()


@pytest.mark.parametrize("axis", [0, 1])
@given(seed=st.integers(0, 50))
def test_nf4_takes_the_nearest_of_sixteen(axis: int, seed: int) -> None:
    weight = matrix(128, 64, seed) if axis == 1 else matrix(64, 128, seed)
    lines, got = (value if axis == 1 else value.T for value in (weight, quantize(weight, "nf4", axis).float32()))
    blocks, found = lines.reshape(-1, NF4_BLOCK_SIZE), got.reshape(-1, NF4_BLOCK_SIZE)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scales)[:, :, None] - NF4).min(axis=2) * scales
    assert (np.abs(found - blocks) <= nearest + 2e-3 * scales).all()  # scales are float16


def test_nf4_keeps_what_it_can_say_exactly() -> None:
    weight = np.tile(NF4, (3, 8)) * np.array([[1.0], [0.5], [4.0]], np.float32)
    np.testing.assert_array_equal(quantize(weight, "nf4").float32(), weight)


@pytest.mark.parametrize(("kind", "axis"), KINDS)
def test_zeros_stay_zeros(kind: Kind, axis: int) -> None:
    assert not quantize(np.zeros((64, 64), np.float32), kind, axis).float32().any()


@pytest.mark.parametrize(("kind", "axis", "pruned"), [("int8", 1, 0), ("int8", 1, 1), ("nf4", 1, 0), ("nf4", 0, 1)])
@given(seed=st.integers(0, 50))
def test_pruning_commutes_with_quantising(kind: Kind, axis: int, pruned: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = quantize(matrix(64, 128, seed), kind, axis)
    kept = np.sort(rng.permutation(held.shape[pruned])[: rng.integers(1, held.shape[pruned])])
    part = held.take(kept, pruned)
    expected = np.take(held.float32(), kept, axis=pruned)
    assert part.shape == expected.shape
    assert part.size == expected.size
    np.testing.assert_array_equal(part.float32(), expected)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.04), ("nf4", 4.26)])
def test_bits_of_an_element(kind: Kind, bits: float) -> None:
    held = quantize(matrix(128, 1024), kind)
    assert 8 * held.nbytes / held.size <= bits


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_not_cut(axis: int) -> None:
    with pytest.raises(TensorError, match=f"axis {axis}"):
        quantize(matrix(64, 64), "nf4", axis).take(np.arange(3), axis)
    shape = (63, 64) if axis == 0 else (64, 65)
    with pytest.raises(TensorError, match="multiple of 64"):
        quantize(matrix(*shape), "nf4", axis)


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), np.full((2, 64), np.nan, np.float32)])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_only_finite_matrices(bad: np.ndarray[tuple[int, ...], np.dtype[np.float32]], kind: Kind) -> None:
    with pytest.raises(TensorError, match="finite"):
        quantize(bad, kind)


def test_weights_beyond_half_precision_are_refused() -> None:
    with pytest.raises(TensorError, match="float16"):
        quantize(np.full((1, 64), 1e6, np.float32), "nf4")
