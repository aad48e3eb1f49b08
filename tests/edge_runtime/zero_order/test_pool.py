"""Weights moved along a pool of seeds: by hand, in pieces, in rows; and the same however the rounds went."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.seed_pool import Noise, SeedPool, coefficients_of, pool_octets, pool_of
from edge_runtime.zero_order.noise import draw, signs
from edge_runtime.zero_order.pool import (
    PIECE,
    Direction,
    device_number,
    moved,
    moved_dense,
    seeds_of_step,
    step_weights,
    tensor_indices,
)

Array = npt.NDArray[np.float32]
SEED = 9
LAWS: tuple[Noise, ...] = ("rademacher", "gaussian")


def pool(*coefficients: float, noise: Noise = "rademacher") -> SeedPool:
    return SeedPool(seed=SEED, noise=noise, coefficients=np.array(coefficients, "<f4").tobytes())


def values(*shape: int) -> Array:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("noise", LAWS)
def test_a_tensor_less_the_sum_of_the_noise_of_seeds(noise: Noise) -> None:
    start = values(7, 30)
    expected = np.zeros(210, np.float32)
    for number, coefficient in ((1, 0.5), (3, -0.25)):
        expected += np.float32(coefficient) * draw(noise, SEED, 0, 0, number, 4, 210)
    less = start - expected.reshape(7, 30)
    made = moved(start, 4, Direction.of(pool(0, 0.5, 0, -0.25, noise=noise)))
    assert made.tobytes() == less.tobytes()
    assert moved(start, 5, Direction.of(pool(0, 0.5, 0, -0.25, noise=noise))).tobytes() != less.tobytes()


def test_golden_digest_of_a_moved_tensor_of_several_pieces() -> None:
    start = np.array(np.arange(2 * PIECE + 100) % 255 - 127, np.float32) / np.float32(64)
    made = {noise: moved(start, 2, Direction.of(pool(0.125, 0, 3e-3, noise=noise))) for noise in LAWS}
    digests = [hashlib.sha256(made[noise].astype("<f4").tobytes()).hexdigest()[:16] for noise in LAWS]
    assert digests == ["b5b39254a1c2c19b", "ab47efaff6b196ca"]


@given(st.integers(0, 700), st.integers(0, 700), st.sampled_from(LAWS))
def test_noise_may_be_drawn_from_the_middle(begin: int, size: int, noise: Noise) -> None:
    key = (1, 2, 3, 4, 5)
    assert np.array_equal(draw(noise, *key, size, begin), draw(noise, *key, begin + size)[begin:])


@given(st.integers(1, 50), st.sets(st.integers(0, 39)), st.sampled_from(LAWS))
def test_rows_alone_are_those_of_the_whole_matrix(width: int, rows: set[int], noise: Noise) -> None:
    matrix, direction, chosen = values(40, width), Direction.of(pool(0.1, -2.0, noise=noise)), sorted(rows)
    some = matrix[chosen]
    direction.subtract_from_rows(some, np.array(chosen, np.int64), 3)
    assert np.array_equal(some, moved(matrix, 3, direction)[chosen])


def test_rows_of_several_pieces_are_those_of_the_whole_matrix() -> None:
    matrix, direction = values(3 * PIECE // 16, 48), Direction.of(pool(0.1, -2.0))
    chosen = np.random.default_rng(0).choice(len(matrix), 500, replace=False)
    chosen.sort()
    some = matrix[chosen]
    direction.subtract_from_rows(some, chosen, 3)
    assert np.array_equal(some, moved(matrix, 3, direction)[chosen])


def test_a_pool_that_moved_nothing_gives_the_very_values() -> None:
    start = values(5)
    assert moved(start, 0, Direction.of(pool(0, 0))) is start


def test_every_tensor_and_the_head_have_noise_of_their_own(manifest: Manifest) -> None:
    indices = tensor_indices(manifest)
    assert sorted(indices.values()) == list(range(len(manifest.tensors) + len(manifest.dense)))
    dense = {spec.name: np.zeros(spec.shape, np.float32) for spec in manifest.dense}
    made = moved_dense(manifest, dense, pool(0.5))
    assert made.keys() == dense.keys()
    for name, value in made.items():
        assert np.array_equal(value.reshape(-1), -0.5 * signs(SEED, 0, 0, 0, indices[name], value.size))


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_weights_in_few_bits_are_refused_in_one_line(manifest: Manifest, dtype: str) -> None:
    first, *others = manifest.tensors
    tensors = (msgspec.structs.replace(first, dtype=dtype), *others)
    with pytest.raises(
        TensorError, match=f"{first.name} is stored as {dtype}, and all weights are to be tuned: export"
    ):
        tensor_indices(msgspec.structs.replace(manifest, tensors=tensors))


def test_devices_draw_seeds_of_their_own_and_the_server_knows_them() -> None:
    a, b = device_number("a"), device_number("b")
    drawn = [seeds_of_step(SEED, device, 1, step, 16, 3) for device in (a, b) for step in (1, 2, 3, 4)]
    assert drawn == [seeds_of_step(SEED, device, 1, step, 16, 3) for device in (a, b) for step in (1, 2, 3, 4)]
    assert len({tuple(numbers) for numbers in drawn}) == 8
    assert seeds_of_step(SEED, a, 1, 1, 16, 3) != seeds_of_step(SEED, a, 2, 1, 16, 3)
    many = [number for step in range(1, 501) for number in seeds_of_step(SEED, a, 1, step, 8, 4)]
    assert np.bincount(many, minlength=8) == pytest.approx(250, abs=75)  # five sigma


def test_what_a_step_counts_is_its_rate_over_its_perturbations_times_its_scalars() -> None:
    scalars = values(3, 4)
    assert step_weights(scalars, 0.3).tobytes() == (scalars * np.float32(0.075)).tobytes()


def test_a_pool_as_a_file_has_it_comes_back() -> None:
    made = pool(1.5, -2, noise="gaussian")
    assert pool_of(pool_octets(made)) == made
    assert coefficients_of(made).tolist() == [1.5, -2]
    for damaged in (pool_octets(made)[:-1], np.zeros(3, np.uint8), pool_octets(pool(np.nan))):
        with pytest.raises(TensorError, match="pool of seeds"):
            pool_of(damaged)
