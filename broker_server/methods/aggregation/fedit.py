"""``fedit``: average A and B separately, weighted by examples (FedIT, arXiv 2305.05644).

Inexact, because mean(B) mean(A) is not mean(B A). Under different ranks and plans each element is averaged over the
devices that hold it (ours; see :mod:`broker_server.methods.aggregation.elementwise`).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.elementwise import average_a, average_b
from broker_server.methods.aggregation.targets import TargetUpdates


class FedIt(Aggregation):
    """See the module."""

    name: ClassVar[str] = "fedit"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        del rng
        weights = [float(one.num_examples) for one in target.contributions]
        return Combined(a=average_a(target, weights), b=average_b(target, weights))
