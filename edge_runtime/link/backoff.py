"""Waits before the next attempt: capped exponential growth with full jitter.

Full jitter (a uniform draw from zero to the bound) spreads a fleet that lost its broker at the same instant; see
"Exponential Backoff And Jitter", Marc Brooker, AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from typing import Final

FIRST_BOUND_S: Final = 1.0
"""Upper bound of the first delay, seconds."""

LARGEST_BOUND_S: Final = 60.0
"""Upper bound that later delays grow to, seconds."""


def bound(failures: int, first_s: float = FIRST_BOUND_S, largest_s: float = LARGEST_BOUND_S) -> float:
    """Upper bound of the delay after ``failures`` failures in a row (1 or more), seconds.

    >>> [bound(n) for n in (1, 2, 3, 100)]
    [1.0, 2.0, 4.0, 60.0]
    """
    return min(largest_s, first_s * 2.0 ** min(failures - 1, 30))


def full_jitter(
    failures: int, rng: random.Random, first_s: float = FIRST_BOUND_S, largest_s: float = LARGEST_BOUND_S
) -> float:
    """A delay drawn uniformly from zero to :func:`bound`, seconds."""
    return rng.uniform(0.0, bound(failures, first_s, largest_s))
