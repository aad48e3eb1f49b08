"""``equal_voices``: A and B are averaged over the devices that hold an element, each with the same weight.

A classifier's head is averaged by the base class, weighted by examples.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation import Aggregation
from broker_server.methods.aggregation.base import Combined
from broker_server.methods.aggregation.elementwise import average_a, average_b
from broker_server.methods.aggregation.targets import TargetUpdates


class EqualVoices(Aggregation):
    """As ``fedit``, but a device with many examples has no more say than one with few."""

    name: ClassVar[str] = "equal_voices"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        del rng
        weights = [1.0] * len(target.contributions)
        return Combined(a=average_a(target, weights), b=average_b(target, weights))
