"""Noise of zero-order tuning from a counter: the same bits on every platform and with every numpy.

A vector is a function of (seed, round, step, perturbation, tensor): no state is kept, and each vector can be drawn
without the ones before it. The generator is numpy's Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3").

+-1 (Rademacher) are its raw bits. Gaussian noise is looked up: 16 bits select one of 65,536 equally likely quantiles.
The table is computed with additions, multiplications, divisions and roots of float64 alone, which IEEE 754 rounds the
same everywhere. Logarithms of libm are not used, because they differ between platforms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.formats.seed_pool import Noise

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_BITS: Final = 64
"""Bits of one number of the generator."""
_BLOCK: Final = 4
"""Numbers of the generator for one value of its counter."""
_INDEX_BITS: Final = 16
"""Bits of the index of a quantile."""
_SIGNS: Final[Array] = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 1, -1
).astype(np.float32)
"""Signs of each byte, lowest bit first, float32 ``[256, 8]``."""


def draw(
    noise: Noise, seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int, begin: int = 0
) -> Array:
    """A vector of the given noise; see :func:`signs` and :func:`gaussian`."""
    return _DRAWN[noise](seed, round_number, step, perturbation, tensor, size, begin)


def signs(seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int, begin: int = 0) -> Array:
    """A vector of +-1.

    Args:
        seed: key of the run, 0 to 2**63 - 1.
        round_number: of the assignment, 1-based.
        step: of the assignment, 1-based.
        perturbation: within the step, 0-based: p of the lower part, p * num_inner + j of the upper part.
        tensor: index in the order of the flat vector (:class:`edge_runtime.formats.adapter.AdapterLayout`), A factors
            counted.
        size: number of elements.
        begin: index of the first element within the tensor; earlier elements are not drawn.

    Returns:
        Float32 ``[size]``. Bits of the generator's numbers as little-endian bytes, lowest bit of each byte first; a bit
        of 1 is +1. A shorter vector is the beginning of a longer one.
    """
    raw, skipped = _raw((seed, tensor), (perturbation, step, round_number), begin, size)
    return _SIGNS.take(raw.view(np.uint8), axis=0).reshape(-1)[skipped : skipped + size]


def gaussian(
    seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int, begin: int = 0
) -> Array:
    """A vector of a standard Gaussian's quantiles, up to 4.3; their mean is exactly 0, their variance 1 in float32.

    Args:
        seed: see :func:`signs` for all arguments.
        round_number: round of the assignment.
        step: step of the assignment.
        perturbation: number within the step.
        tensor: index in the order of the flat vector.
        size: number of elements.
        begin: index of the first element within the tensor.

    Returns:
        Float32 ``[size]``: element i is the quantile with the 16-bit number i as index, lowest bits of each of the
        generator's numbers first. A shorter vector is the beginning of a longer one.
    """
    raw, skipped = _raw((seed, tensor), (perturbation, step, round_number), begin * _INDEX_BITS, size * _INDEX_BITS)
    begun = skipped // _INDEX_BITS
    return np.take(quantiles(), raw.view("<u2")[begun : begun + size])


_DRAWN: Final[Mapping[Noise, Callable[[int, int, int, int, int, int, int], Array]]] = {
    "rademacher": signs,
    "gaussian": gaussian,
}


def _raw(
    key: tuple[int, int], counter: tuple[int, int, int], begin: int, num_bits: int
) -> tuple[npt.NDArray[np.uint64], int]:
    """Numbers of the generator, little-endian, from bit ``begin`` on, and the bits to skip in the first number."""
    block, skipped = divmod(begin, _BITS * _BLOCK)
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([block, *counter], np.uint64))
    return generator.random_raw(-(-(skipped + num_bits) // _BITS)).astype("<u8", copy=False), skipped


_LN_2: Final = 0.6931471805599453
_LN_3_QUARTERS: Final = -0.2876820724517809
# Wichura (1988), PPND16: numerators and denominators within 0.425 of the median, and in the tails; lowest power first.
_CENTRE_ABOVE: Final = (
    3.3871328727963665,
    133.14166789178438,
    1971.5909503065513,
    13731.69376550946,
    45921.95393154987,
    67265.7709270087,
    33430.57558358813,
    2509.0809287301227,
)
_CENTRE_BELOW: Final = (
    1.0,
    42.31333070160091,
    687.1870074920579,
    5394.196021424751,
    21213.794301586597,
    39307.89580009271,
    28729.085735721943,
    5226.495278852854,
)
_TAIL_ABOVE: Final = (
    1.4234371107496835,
    4.630337846156546,
    5.769497221460691,
    3.6478483247632045,
    1.2704582524523684,
    0.2417807251774506,
    0.022723844989269184,
    0.0007745450142783414,
)
_TAIL_BELOW: Final = (
    1.0,
    2.053191626637759,
    1.6763848301838038,
    0.6897673349851,
    0.14810397642748008,
    0.015198666563616457,
    0.0005475938084995345,
    1.0507500716444169e-09,
)


@functools.cache
def quantiles() -> Array:
    """The standard Gaussian's quantiles at (i + 1/2) / 65,536, divided by the root of their mean square.

    Wichura's AS 241 (1988), PPND16, accurate to 1e-16; its farthest tail is not needed here.

    Returns:
        Float32 ``[65536]``, ascending, antisymmetric, read-only; 256 KiB.
    """
    half = 1 << (_INDEX_BITS - 1)
    odd = 2.0 * np.arange(half) + 1  # of the lower half; each probability is odd / 2**17, exactly
    from_middle = odd / (4 * half) - 0.5
    is_central = from_middle >= -0.425
    values = np.empty(half)
    central = from_middle[is_central]
    squares = 0.180625 - central * central
    values[is_central] = central * _polynomial(_CENTRE_ABOVE, squares) / _polynomial(_CENTRE_BELOW, squares)
    far = np.sqrt(-_logarithm(odd[~is_central] / (4 * half))) - 1.6  # a division by a power of 2 is exact
    values[~is_central] = -_polynomial(_TAIL_ABOVE, far) / _polynomial(_TAIL_BELOW, far)
    mean_square = math.fsum((values * values).tolist()) / half
    lower = (values / math.sqrt(mean_square)).astype(np.float32)
    table = np.concatenate([lower, -lower[::-1]])
    table.flags.writeable = False
    return table


def _polynomial(coefficients: Sequence[float], x: Float64) -> Float64:
    """Evaluate a polynomial by Horner's rule; coefficients are in ascending order of powers."""
    total = np.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def _logarithm(x: Float64) -> Float64:
    """Natural logarithm of numbers above 0, to 1e-15, from exact exponents and the series of artanh."""
    mantissa, exponent = np.frexp(x)  # mantissa in [1/2, 1)
    ratio = (mantissa - 0.75) / (mantissa + 0.75)  # magnitude at most 1/5
    square = ratio * ratio
    total = np.zeros_like(ratio)
    for power in range(23, 0, -2):
        total = total * square + 1 / power
    return 2 * ratio * total + exponent * _LN_2 + _LN_3_QUARTERS
