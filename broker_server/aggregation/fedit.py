"""``fedit``: average A and B separately, weighted by examples (FedIT, arXiv 2305.05644).

Inexact, because mean(B) mean(A) is not mean(B A). Under different ranks and plans each element is averaged over the
devices that hold it (ours): element ``(i, j)`` of A is held when component ``i`` is within the device's rank and column
``j`` within its plan, and likewise for B. An element that nobody holds keeps its old value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from broker_server.aggregation.base import Aggregation, DeviceUpdate, Float64, factors
from edge_runtime.wire.adapter import target_indices
from edge_runtime.wire.manifest import TargetSpec


class FedIt(Aggregation):
    """See the module."""

    name: ClassVar[str] = "fedit"

    def _combine(
        self,
        target: TargetSpec,
        old: tuple[Float64, Float64],
        updates: Sequence[DeviceUpdate],
        rng: np.random.Generator,
    ) -> tuple[Float64, Float64]:
        del rng
        sums = tuple(np.zeros_like(value) for value in old)
        weights = tuple(np.zeros_like(value) for value in old)
        for update in updates:
            rows, columns = target_indices(target, update.plan)
            a, b = factors(target, update)
            components = np.arange(update.rank)
            held_a = np.ix_(components, np.arange(target.in_features) if columns is None else columns)
            held_b = np.ix_(np.arange(target.out_features) if rows is None else rows, components)
            for total, weight, held, value in zip(sums, weights, (held_a, held_b), (a, b), strict=True):
                total[held] += update.num_examples * value
                weight[held] += update.num_examples
        new_a, new_b = (
            np.divide(total, weight, out=value.copy(), where=weight > 0)
            for total, weight, value in zip(sums, weights, old, strict=True)
        )
        return new_a, new_b
