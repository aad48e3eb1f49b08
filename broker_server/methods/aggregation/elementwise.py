"""Averages of A and of B, element by element, over the devices that hold an element.

Element ``(j, i)`` of A is held when component ``j`` is within the device's rank and column ``i`` within its plan, and
likewise element ``(i, j)`` of B. An element that nobody holds keeps its old value (ours).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_server.methods.aggregation.targets import Float64, TargetUpdates
from edge_runtime.formats.plan import Indices


def average_a(target: TargetUpdates, weights: Sequence[float], *, zero_pad: bool = False) -> Float64:
    """The new A ``[R, I]``; see :func:`average_b`."""
    held = [one.held if target.prunes_columns else None for one in target.contributions]
    values = [one.a.T for one in target.contributions]
    return _average(target.old_a.T, values, held, weights, zero_pad=zero_pad).T


def average_b(target: TargetUpdates, weights: Sequence[float], *, zero_pad: bool = False) -> Float64:
    """The new B ``[O, R]``.

    Args:
        target: old factors and contributions.
        weights: weights of the contributions, 0 or more, not all zero.
        zero_pad: whether a device counts with zero in the components beyond its rank, as in HetLoRA; otherwise it does
            not count there.
    """
    held = [None if target.prunes_columns else one.held for one in target.contributions]
    values = [one.b for one in target.contributions]
    return _average(target.old_b, values, held, weights, zero_pad=zero_pad)


def _average(
    old: Float64,
    values: Sequence[Float64],
    held: Sequence[Indices | None],
    weights: Sequence[float],
    *,
    zero_pad: bool,
) -> Float64:
    """Average of ``values`` ``[N_k, r_k]``, whose rows lie at ``held`` of the ``N`` rows of ``old`` ``[N, R]``."""
    total, weight, is_held = np.zeros_like(old), np.zeros_like(old), np.zeros(old.shape, bool)
    for value, rows, own in zip(values, held, weights, strict=True):
        indices = np.arange(old.shape[0]) if rows is None else rows
        at = np.ix_(indices, np.arange(value.shape[1]))
        total[at] += own * value
        weight[np.ix_(indices, np.arange(old.shape[1])) if zero_pad else at] += own
        is_held[at] = True
    return np.divide(total, weight, out=old.copy(), where=is_held & (weight > 0))
