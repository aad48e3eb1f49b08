"""Importance of heads and feed-forward channels from the magnitude of the base weights.

For a unit ``u`` of a group whose coupled matrices are ``W_1 .. W_m`` (the rows of q, k, v and the columns of the output
projection for a head; the rows of gate and up and the columns of down for a channel), with ``W_i[u]`` the unit's slice:

    importance(u) = sum_i ||W_i[u]||_2 / ||W_i||_2          (Frobenius norms)

The division by each matrix's own norm, so that matrices of different scales weigh the same, follows LLM-Pruner
(arXiv 2305.11627) and LoRAPrune (arXiv 2305.18403); magnitudes in place of gradients are our choice, because nothing
has been trained yet when the first plan is made. Biases do not count. Only the order within one group matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_runtime.formats.manifest import Manifest, PruneAxis, TensorSpec

Scores = dict[tuple[int, str], npt.NDArray[np.float32]]


def magnitude_importance(manifest: Manifest, read: Callable[[TensorSpec], npt.NDArray[np.generic]]) -> Scores:
    """Scores of all units, in the form that :func:`edge_runtime.formats.ranking.plan_at` takes.

    Args:
        manifest: the artifact's manifest.
        read: gives a base weight of ``spec.shape``, before pruning; called once for each coupled matrix, one at a time.

    Returns:
        ``(layer, group)`` to float32 ``[num_units]``, 0 or more; a group without a coupled matrix scores 0.
    """
    totals = {(g.layer, g.group): np.zeros(g.num_units, np.float64) for g in manifest.groups}
    for spec in manifest.tensors:
        if spec.layer is None or not spec.prune or len(spec.shape) < 2:
            continue
        squares = np.square(np.asarray(read(spec), dtype=np.float64))
        norm = float(np.sqrt(squares.sum()))
        if norm == 0.0:
            continue
        for prune in spec.prune:
            totals[spec.layer, prune.group] += np.sqrt(_unit_sums(squares, prune)) / norm
    return {key: total.astype(np.float32) for key, total in totals.items()}


def _unit_sums(squares: npt.NDArray[np.float64], prune: PruneAxis) -> npt.NDArray[np.float64]:
    """Sums over the slices of each unit, float64 ``[num_units]``."""
    others = tuple(axis for axis in range(squares.ndim) if axis != prune.axis)
    along: npt.NDArray[np.float64] = squares.sum(axis=others)
    sums: npt.NDArray[np.float64] = along.reshape(-1, prune.unit_size).sum(axis=1)
    return sums
