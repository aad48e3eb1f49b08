"""The exact weighted sum of the devices' products B A, as two stacked factors; the dense matrix is never built.

A product is the sum of its components b_j a_j (column ``j`` of B, row ``j`` of A). With weights ``w_ki`` of device
``k`` at coordinate ``i`` (a row of the product where B's rows are pruned, a column where A's columns are) and ``H_ij``
the devices that count there,

    W_i = sum_j W_ij,     W_ij = (sum_{k in H_ij} w_ki (b_kj a_kj)_i + o_ij (b_j a_j)_i) / (sum_{k in H_ij} w_ki + o_ij)

with the old adapter's ``b_j a_j``, where ``k`` counts if its plan keeps coordinate ``i``, and, if components are held
too, its rank is above ``j``. Otherwise a device of a small rank counts with zero in the other components, and W_i is
the plain weighted sum of the products. With equal ranks both are the same. The weight ``o_ij`` of the old value is one
of two (both ours, and both keep the old value where H_ij is empty):

* zero, unless H_ij is empty: a coordinate is divided by the weight of the devices that hold it;
* the number of examples of all devices that do not count there: they do not change coordinates that they do not hold.

It is a scaling of the elements of the stacked B_k (or of the stacked A_k, where their columns are pruned), and old
values are one more block, so W = L M with L ``[O, S]`` and M ``[S, I]``, S the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_server.methods.aggregation.targets import Float64, TargetUpdates


def stacked_sum(
    target: TargetUpdates, weights: Sequence[Float64], *, holds_components: bool, absent_keep: bool = False
) -> tuple[Float64, Float64]:
    """Return left ``[O, S]`` and right ``[S, I]`` whose product is W.

    Args:
        target: old factors and contributions.
        weights: for each contribution its positive weights at the coordinates that it holds.
        holds_components: whether a device counts only in the components that it has; see the module.
        absent_keep: whether a device counts with the old value where it does not hold a coordinate; see the module.
    """
    # The denominators of W_ij, with a row for each coordinate i and a column for each component j: `present` is the sum
    # of the w_ki over H_ij, `absent` is o_ij. They differ by component only if `holds_components`: a device of rank r
    # then counts in the first r components, otherwise in all (with zeros in those that it does not have).
    present = np.zeros((target.num_coordinates, target.rank))
    absent = np.zeros_like(present)
    for one, weight in zip(target.contributions, weights, strict=True):
        own = np.zeros_like(present)
        own[one.held, : one.rank if holds_components else target.rank] = weight[:, None]
        present += own
        if absent_keep:
            absent += np.where(own > 0, 0.0, one.num_examples)
    total = present + absent
    # The share of the old value: o_ij over the denominator, and 1 where no device counts, so that the old value stays.
    # A component whose share is 0 at every coordinate is left out of the last block.
    kept = np.divide(absent, total, out=np.ones_like(total), where=total > 0)
    (components,) = np.nonzero(kept.any(axis=0))
    num_components = sum(one.rank for one in target.contributions) + components.size
    left = np.zeros((target.spec.out_features, num_components))
    right = np.zeros((num_components, target.spec.in_features))
    end = 0
    for one, weight in zip(target.contributions, weights, strict=True):
        # Weight w_ki over the denominator scales element (i, j) of one factor: of B if its rows are the coordinates,
        # of A if its columns are. The other factor is not scaled. Coordinates that the device does not hold stay 0.
        share = weight[:, None] / total[one.held, : one.rank]
        begin, end = end, end + one.rank
        if target.prunes_columns:
            left[:, begin:end] = one.b
            right[begin:end, one.held] = (one.a.T * share).T
        else:
            left[one.held, begin:end] = one.b * share
            right[begin:end] = one.a
    # The old adapter is one more block, scaled by its share in the same way.
    if components.size:
        kept, a, b = kept[:, components], target.old_a[components], target.old_b[:, components]
        left[:, end:] = b if target.prunes_columns else b * kept
        right[end:] = a * kept.T if target.prunes_columns else a
    return left, right
