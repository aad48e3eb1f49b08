"""A ceiling on the share of one device (ours), because devices state their numbers of examples themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FEWEST_DEVICES: Final = 3
"""Of two devices, one that has more would be held to as many as the other: there is no majority to go by."""


def with_ceiling(num_examples: Sequence[int], max_share: float = 0.5) -> list[int]:
    """The examples that the devices of a round count with, none with more than a share of all, where there are three.

    At most one of them has more than half, and only its number changes: to what gives it ``max_share`` beside the
    others, rounded down. Where none has more, nothing changes.

    Args:
        num_examples: by device; those without examples do not count as devices.
        max_share: 0.5 (as many as all others together) to 1 (no ceiling).

    Returns:
        Numbers in the same order.
    """
    total = sum(num_examples)
    if max_share >= 1.0 or sum(number > 0 for number in num_examples) < FEWEST_DEVICES:
        return list(num_examples)
    ratio = max_share / (1.0 - max_share)
    return [min(number, int(ratio * (total - number))) for number in num_examples]
