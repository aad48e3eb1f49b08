"""The exact weighted sum of the devices' products B A, as two stacked factors; the dense matrix is never built.

A product is the sum of its components b_j a_j (column ``j`` of B, row ``j`` of A). With weights ``w_ki`` of device
``k`` at coordinate ``i`` (a row of the product where B's rows are pruned, a column where A's columns are) and ``H_ij``
the devices that count there,

    W_i = sum_j W_ij,     W_ij = (sum_{k in H_ij} w_ki (b_kj a_kj)_i + o_ij (b_j a_j)_i) / (sum_{k in H_ij} w_ki + o_ij)

with the old adapter's ``b_j a_j``, where ``k`` counts if its plan keeps coordinate ``i``, and, if components are held
too, its rank is above ``j``. Otherwise a device of a small rank counts with zero in the other components, and W_i is
the plain weighted sum of the products. With equal ranks both are the same. The weight ``o_ij`` of what was there before
is one of two (both ours, and both keep the old value where H_ij is empty):

* nothing, unless H_ij is empty: a coordinate is divided by the weight of those that hold it;
* the examples of all devices that do not count there: what a device does not hold, it leaves as it is.

It is a scaling of the elements of the stacked B_k (or of the stacked A_k, where their columns are pruned), and old
values are one more block, so W = L M with L ``[O, S]`` and M ``[S, I]``, S the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_server.aggregation.targets import Float64, TargetUpdates
from edge_runtime.wire.plan import Indices


def stacked_sum(
    target: TargetUpdates, weights: Sequence[Float64], *, holds_components: bool, absent_keep: bool = False
) -> tuple[Float64, Float64]:
    """Left ``[O, S]`` and right ``[S, I]`` whose product is W.

    Args:
        target: old factors and contributions.
        weights: for each contribution its positive weights at the coordinates that it holds.
        holds_components: whether a device counts only in the components that it has; see the module.
        absent_keep: whether a device counts with the old value in what it does not hold; see the module.
    """
    present = np.zeros((target.num_coordinates, target.rank))
    absent = np.zeros_like(present)
    for one, weight in zip(target.contributions, weights, strict=True):
        own = np.zeros_like(present)
        own[one.held, : one.rank if holds_components else target.rank] = weight[:, None]
        present += own
        if absent_keep:
            absent += np.where(own > 0, 0.0, one.num_examples)
    total = present + absent
    lefts, rights = [], []
    for one, weight in zip(target.contributions, weights, strict=True):
        share = weight[:, None] / total[one.held, : one.rank]
        if target.prunes_columns:
            lefts.append(one.b)
            rights.append(_spread(one.a.T * share, one.held, target.num_coordinates).T)
        else:
            lefts.append(_spread(one.b * share, one.held, target.num_coordinates))
            rights.append(one.a)
    kept = np.divide(absent, total, out=np.ones_like(total), where=total > 0)
    (components,) = np.nonzero(kept.any(axis=0))
    if components.size:
        kept, a, b = kept[:, components], target.old_a[components], target.old_b[:, components]
        lefts.append(b if target.prunes_columns else b * kept)
        rights.append(a * kept.T if target.prunes_columns else a)
    return np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)


def _spread(rows: Float64, indices: Indices, size: int) -> Float64:
    """A matrix of ``size`` rows with ``rows`` at ``indices`` and zeros elsewhere."""
    out = np.zeros((size, rows.shape[1]))
    out[indices] = rows
    return out
