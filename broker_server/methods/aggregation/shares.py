"""A ceiling on the share of one device (ours), because devices report their own numbers of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FEWEST_DEVICES: Final = 3
"""Fewest devices for the ceiling; with two, it would always make their weights equal."""


def with_ceiling(num_examples: Sequence[int], max_share: float = 0.5) -> list[int]:
    """The weights of the devices of a round in examples; of three or more devices none has more than ``max_share``.

    At most one device can have more than half. Its number is reduced, rounded down, so that its share is ``max_share``.
    Other numbers do not change.

    Args:
        num_examples: number of examples of each device; devices without examples do not count.
        max_share: 0.5 (as many as all others together) to 1 (no ceiling).

    Returns:
        Numbers in the same order.
    """
    total = sum(num_examples)
    if max_share >= 1.0 or sum(number > 0 for number in num_examples) < FEWEST_DEVICES:
        return list(num_examples)
    ratio = max_share / (1.0 - max_share)
    return [min(number, int(ratio * (total - number))) for number in num_examples]
