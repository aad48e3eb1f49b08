"""A ceiling on what one device counts for (ours): a number of examples is a device's own word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from broker_server.aggregation.base import DeviceUpdate

FEWEST_DEVICES: Final = 3
"""Of two devices, one that has more would be held to as many as the other: there is no majority to go by."""


def with_ceiling(updates: Sequence[DeviceUpdate]) -> list[DeviceUpdate]:
    """The updates of a round, none with more examples than all others together, where there are three or more.

    So one device has at most half of the weight, whatever it says. At most one of them has more than the others
    together, and only its examples change; where none has, nothing does.

    Args:
        updates: in any order; those without examples do not count as devices.

    Returns:
        The updates in their order.
    """
    total = sum(update.num_examples for update in updates)
    if sum(update.num_examples > 0 for update in updates) < FEWEST_DEVICES:
        return list(updates)
    return [
        dataclasses.replace(update, num_examples=min(update.num_examples, total - update.num_examples))
        for update in updates
    ]
