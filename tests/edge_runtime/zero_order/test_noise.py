"""Noise is the same bits everywhere: golden bytes, and Philox4x64-10 done by hand."""

from __future__ import annotations

import hashlib
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.zero_order.noise import draw, gaussian, quantiles, signs

MASK = 2**64 - 1
COUNTERS = st.integers(0, 2**31 - 1)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """A block of Philox4x64-10 (Salmon et al. 2011, section 4.3), in whole numbers."""
    x, (k0, k1) = list(counter), key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * x[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * x[2], 2**64)
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return x


def by_hand(seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int) -> list[int]:
    bits: list[int] = []
    block = 0
    while len(bits) < size:
        block += 1  # numpy counts before it draws
        for number in philox([block, perturbation, step, round_number], [seed, tensor]):
            bits += [number >> place & 1 for place in range(64)]
    return [2 * bit - 1 for bit in bits[:size]]


@pytest.mark.parametrize(
    ("key", "size", "golden"),
    [
        ((7, 3, 2, 5, 11), 256, "4a4541c037a10efd01e1528444c91a11a47a121ab7f813395890521d1c5c61aa"),
        ((2**63 - 1, 2**31 - 1, 2**31 - 1, 9, 3), 70, "7d3b47d9be08962f03"),
    ],
)
def test_golden_bytes(key: tuple[int, int, int, int, int], size: int, golden: str) -> None:
    noise = signs(*key, size)
    assert noise.dtype == np.float32
    assert np.packbits(noise > 0, bitorder="little").tobytes().hex() == golden


def test_golden_digest_of_a_vector_as_long_as_an_adapter() -> None:
    digest = hashlib.sha256(signs(7, 1, 1, 0, 0, 38_404).astype("<f4").tobytes()).hexdigest()
    assert digest == "8f184fb81b1c8edfff4a687fac91936eceef4a21e46fe138b20eabb4e334db3a"


@given(st.integers(0, 2**63 - 1), COUNTERS, COUNTERS, COUNTERS, COUNTERS, st.integers(0, 600))
def test_noise_is_philox(seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int) -> None:
    key = (seed, round_number, step, perturbation, tensor)
    assert signs(*key, size).tolist() == by_hand(*key, size)


@given(st.integers(0, 700), st.integers(0, 700))
def test_a_shorter_vector_begins_a_longer_one(one: int, other: int) -> None:
    shorter, longer = sorted((one, other))
    for noise in (signs, gaussian):
        assert np.array_equal(noise(1, 2, 3, 4, 5, longer)[:shorter], noise(1, 2, 3, 4, 5, shorter))


def test_every_number_of_the_key_gives_other_noise() -> None:
    keys = [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (1, 2, 1, 1, 1), (1, 1, 2, 1, 1), (1, 1, 1, 2, 1), (1, 1, 1, 1, 2)]
    vectors = [signs(*key, 4096) for key in keys]
    products = np.array(vectors) @ np.array(vectors).T / 4096
    assert np.abs(products - np.eye(len(keys))).max() < 5 / np.sqrt(4096)  # uncorrelated, five sigma


def test_signs_are_even() -> None:
    assert abs(signs(3, 1, 1, 0, 0, 1_000_000).mean()) < 5e-3


def test_gaussian_noise_has_its_golden_bytes() -> None:
    noise = gaussian(7, 3, 2, 5, 11, 8)
    assert noise.dtype == np.float32
    assert noise.astype("<f4").tobytes().hex() == "645d1cbf267a2d3f6d93a93eb18111407db7953f0e672d3dea164b3fa3ffbfbf"
    digest = hashlib.sha256(gaussian(7, 1, 1, 0, 0, 38_404).astype("<f4").tobytes()).hexdigest()
    assert digest == "731b19b8ba2dd633015e26bff3435bb4e57560c20dff5eaeae8656ce53b868c0"
    table = hashlib.sha256(quantiles().astype("<f4").tobytes()).hexdigest()
    assert table == "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"


@given(st.integers(0, 2**63 - 1), COUNTERS, COUNTERS, COUNTERS, COUNTERS, st.integers(0, 60))
def test_gaussian_noise_is_looked_up_by_16_bits(
    seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int
) -> None:
    key = (seed, round_number, step, perturbation, tensor)
    bits = [(sign + 1) // 2 for sign in by_hand(*key, 16 * size)]
    places = [sum(bit << i for i, bit in enumerate(bits[16 * n : 16 * n + 16])) for n in range(size)]
    assert np.array_equal(gaussian(*key, size), quantiles()[places])


def test_quantiles_are_those_of_a_gaussian_of_variance_1() -> None:
    normal = statistics.NormalDist()
    by_libm = np.array([normal.inv_cdf((i + 0.5) / 65_536) for i in range(65_536)])
    by_libm /= np.sqrt(np.mean(by_libm * by_libm))
    table = quantiles()
    assert np.abs(table - by_libm).max() < 2.4e-7  # half a step of float32 at 4
    assert np.array_equal(table, -table[::-1])  # so the mean is 0 exactly
    assert np.mean(table.astype(np.float64) ** 2) == pytest.approx(1.0, abs=1e-8)
    assert np.mean(table.astype(np.float64) ** 4) == pytest.approx(3.0, abs=1e-3)


def test_noise_is_drawn_by_its_law() -> None:
    key = (1, 2, 3, 4, 5, 100)
    assert np.array_equal(draw("rademacher", *key), signs(*key))
    assert np.array_equal(draw("gaussian", *key), gaussian(*key))
