"""The exact weighted sum of the devices' products B A, as two stacked factors; the dense matrix is never built.

With weights ``w_ki`` of device ``k`` at coordinate ``i`` (a row of the product where B's rows are pruned, a column
where A's columns are) and ``H_i`` the devices that hold it, coordinate by coordinate

    W_i = sum_{k in H_i} w_ki (B_k A_k)_i / sum_{k in H_i} w_ki,     W_i = (B A)_i of the old adapter if H_i is empty

Dividing by what is held is ours. It is a scaling of the rows of the stacked B_k (or of the columns of the stacked A_k),
and old values are one more block, so W = L M with L ``[O, S]`` and M ``[S, I]``, S the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broker_server.aggregation.targets import Float64, TargetUpdates
from edge_runtime.wire.plan import Indices


def stacked_sum(
    target: TargetUpdates, weights: Sequence[Float64], *, keep_components: bool = False
) -> tuple[Float64, Float64]:
    """Left ``[O, S]`` and right ``[S, I]`` whose product is W.

    Args:
        target: old factors and contributions.
        weights: for each contribution its positive weights at the coordinates that it holds.
        keep_components: False: a device of rank r says that components beyond r are zero, as FlexLoRA has it. True
            (ours): it says nothing of them, so in its product they stay what they were: (B_k A_k)_i in the formula
            becomes (B_k A_k)_i + sum_{j >= r_k} B_ij A_j of the old adapter.
    """
    total = np.zeros(target.num_coordinates)
    for one, weight in zip(target.contributions, weights, strict=True):
        total[one.held] += weight
    lefts, rights = [], []
    kept = np.zeros((target.num_coordinates, target.rank))  # share of the old component at a coordinate
    kept[total == 0] = 1.0
    for one, weight in zip(target.contributions, weights, strict=True):
        share = weight / total[one.held]
        if keep_components:
            kept[one.held, one.rank :] += share[:, None]
        if target.prunes_columns:
            lefts.append(one.b)
            rights.append(_spread((one.a * share).T, one.held, target.num_coordinates).T)
        else:
            lefts.append(_spread(one.b * share[:, None], one.held, target.num_coordinates))
            rights.append(one.a)
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
