"""Combination of the devices' scalars: all devices use the same perturbations, so each scalar is combined by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.bounds.limits import MAX_FACTOR

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

TRIMMED_SHARE: Final = 0.1
"""Share of the devices that is left out at each end."""

MEDIAN_ROUNDS: Final = 8
"""Number of last rounds whose magnitudes bound the scalars of the next round."""
LARGEST: Final = 5.0
"""Scalars are clipped to this multiple of the median magnitude."""


def mean(values: Float64, weights: Float64) -> Float64:
    """Weighted by examples (FedAvg, arXiv 1602.05629): the scalar of all examples together."""
    return np.asarray(np.average(values, axis=0, weights=weights), np.float64)


def median(values: Float64, weights: Float64) -> Float64:
    """Each device counts once: fewer than half of them cannot move it beyond the values of the others."""
    del weights
    return np.asarray(np.median(values, axis=0), np.float64)


def trimmed_mean(values: Float64, weights: Float64) -> Float64:
    """The mean without the largest and the smallest tenth, at least one of each where there are three or more.

    Each device counts once (coordinate-wise trimmed mean, Yin et al., arXiv 1803.01498).
    """
    del weights
    num_devices = len(values)
    num_left_out = min(math.ceil(TRIMMED_SHARE * num_devices), (num_devices - 1) // 2)
    kept = np.sort(values, axis=0)[num_left_out : num_devices - num_left_out]
    return np.asarray(kept.mean(axis=0), np.float64)


RULES: Final[Mapping[str, Callable[[Float64, Float64], Float64]]] = {
    "mean": mean,
    "median": median,
    "trimmed": trimmed_mean,
}
"""Functions by the setting ``zo_combine``: they take values ``[devices, ...]`` and weights ``[devices]`` above 0."""


def typical_magnitude(values: Float64) -> float:
    """Median of the magnitudes of all scalars of all devices.

    It uses the scalars of single devices, because combined scalars get smaller with more devices. A bound from combined
    scalars would clip ordinary scalars, and the next bound would be even smaller.
    """
    return float(np.median(np.abs(values)))


def largest_scalar(magnitudes: Sequence[float]) -> float | None:
    """Bound to which devices clip the scalars of the next round; None without earlier rounds.

    Args:
        magnitudes: typical magnitudes by ascending round.
    """
    last = magnitudes[-MEDIAN_ROUNDS:]
    bound = LARGEST * float(np.median(last)) if len(last) else 0.0
    return min(bound, MAX_FACTOR) if bound > 0 else None
