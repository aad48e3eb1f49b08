"""A ceiling on what one device counts for (ours): a number of examples is a device's own word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from broker_server.methods.aggregation.base import DeviceUpdate

FEWEST_DEVICES: Final = 3
"""Of two devices, one that has more would be held to as many as the other: there is no majority to go by."""


def with_ceiling(updates: Sequence[DeviceUpdate], max_share: float = 0.5) -> list[DeviceUpdate]:
    """The updates of a round, none with more than a share of the examples, where there are three or more.

    At most one of them has more than half, and only its examples change: to what gives it ``max_share`` beside the
    others, rounded down. Where none has more, nothing changes.

    Args:
        updates: in any order; those without examples do not count as devices.
        max_share: 0.5 (as many as all others together) to 1 (no ceiling).

    Returns:
        The updates in their order.
    """
    total = sum(update.num_examples for update in updates)
    if max_share >= 1.0 or sum(update.num_examples > 0 for update in updates) < FEWEST_DEVICES:
        return list(updates)
    ratio = max_share / (1.0 - max_share)
    return [
        dataclasses.replace(update, num_examples=min(update.num_examples, int(ratio * (total - update.num_examples))))
        for update in updates
    ]
