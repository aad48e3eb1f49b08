"""Noise of zero-order tuning: +-1 from a counter, the same bits on every platform and with every numpy.

A vector is a function of (seed, round, step, perturbation, tensor): nothing is kept, and any vector can be had again
without those before it. +-1 (Rademacher) instead of a Gaussian: raw bits are exact everywhere, a Gaussian needs
logarithms, which differ from one libm to another. Philox is that of Salmon et al. 2011 ("Parallel random numbers: as
easy as 1, 2, 3"), Philox4x64-10, as numpy has it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_BITS: Final = 64
"""In one number of the generator."""


def signs(seed: int, round_number: int, step: int, perturbation: int, tensor: int, size: int) -> Array:
    """A vector of +-1.

    Args:
        seed: key of the run, 0 to 2**63 - 1.
        round_number: of the assignment, 1-based.
        step: of the assignment, 1-based.
        perturbation: within the step, 0-based: p of the lower part, p * num_inner + j of the upper part.
        tensor: index in the order of the flat vector (:class:`edge_runtime.formats.adapter.AdapterLayout`), A factors
            counted.
        size: number of elements.

    Returns:
        Float32 ``[size]``. Bits of the generator's numbers as little-endian bytes, lowest bit of each byte first; a bit
        of 1 is +1. A shorter vector is the beginning of a longer one.
    """
    key = np.array([seed, tensor], np.uint64)
    counter = np.array([0, perturbation, step, round_number], np.uint64)
    drawn = np.random.Philox(key=key, counter=counter).random_raw(-(-size // _BITS))
    as_bytes = drawn.astype("<u8", copy=False).view(np.uint8)
    values = np.unpackbits(as_bytes, bitorder="little", count=size).astype(np.float32)
    values *= 2
    values -= 1
    return values
