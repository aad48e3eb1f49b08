"""The choice between replaying the log and pulling theta: the faster way by rates measured on this device."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable
from typing import Final, Self

import numpy as np

from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.seed_pool import Noise
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.zero_order.noise import draw
from edge_runtime.zero_order.parts import TunedParts, count_elements

_SMALL: Final = 64
_LARGE: Final = 1 << 16
_REPEATS: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseRate:
    """Time that this device takes to draw, scale and add noise."""

    vector_s: float
    """For each vector, whatever its size, seconds."""
    element_s: float
    """For each element, seconds."""

    @classmethod
    def measure(cls, noise: Noise) -> Self:
        """Measure the rate; takes a few milliseconds."""
        small, large = _seconds(noise, _SMALL), _seconds(noise, _LARGE)
        return cls(vector_s=small, element_s=max(0.0, large - small) / _LARGE)

    def replay_s(self, manifest: Manifest, rank: int, log: Iterable[LoggedRound], first: int) -> float:
        """Time to replay the rounds of a log, seconds.

        Args:
            manifest: manifest of the artifact.
            rank: rank of the adapter.
            log: rounds by ascending number.
            first: rounds with lower numbers are replayed for the preconditioner alone, which takes as long.

        Raises:
            TensorError: a round is at a cut that the model does not have.
        """
        total = 0.0
        for logged in log:
            num_times = (logged.round_number >= first) + (logged.preconditioner is not None)
            parts = TunedParts.of(manifest, rank, logged.cut)
            num_upper = len(logged.scalars) // np.dtype(np.float32).itemsize
            num_lower = num_upper // logged.num_inner if logged.lower_learning_rate > 0 else 0
            for count, tensors in ((num_lower, parts.lower), (num_upper, parts.upper)):
                total += num_times * count * (len(tensors) * self.vector_s + count_elements(tensors) * self.element_s)
        return total


def _seconds(noise: Noise, size: int) -> float:
    """Time for one vector: the median of some, because the first one may load a table."""
    total, times = np.zeros(size, np.float32), []
    for number in range(_REPEATS):
        began = time.perf_counter()
        drawn = draw(noise, 0, 1, 1, number, 0, size)
        drawn *= np.float32(0.5)
        total += drawn
        times.append(time.perf_counter() - began)
    return statistics.median(times)
