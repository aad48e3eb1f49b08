"""``flexlora``: the exact weighted sum of the products B A, decomposed again to the global rank (arXiv 2402.11505).

With weights ``p_k`` (examples) and ``H_i`` the devices that hold coordinate ``i`` (a row of the product where B's rows
are pruned, a column where A's columns are), the new product is, coordinate by coordinate,

    W_i = sum_{k in H_i} p_k (B_k A_k)_i / sum_{k in H_i} p_k,     W_i = (B A)_i of the old adapter if H_i is empty

Dividing by what is held is ours. W is never formed: the division is a scaling of the rows of the stacked B_k (or of
the columns of the stacked A_k), unheld coordinates are one more block with the old factors, so W = L M with L
``[O, S]`` and M ``[S, I]``, S the sum of the ranks. QR of L and of M^T leaves an ``S x S`` matrix whose SVD is W's.
Cutting it at rank R is the best approximation of that rank in Frobenius norm (Eckart and Young), and exact when W has
no more components.

Which of the many factors of W become the new ones is ours too: rows of A are orthogonal with the norm ``1/sqrt(3)``
that a row has under PEFT's initialisation (uniform within 1/sqrt(I)), largest component first, and B takes the rest.
So training goes on with an A of the usual scale, and the leading components are what a device of a smaller rank gets.
A component without any weight would leave both factors zero and never train again: it gets a fresh row of A, and
zeros in B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np

from broker_server.aggregation.base import Aggregation, DeviceUpdate, Float64, factors
from edge_runtime.wire.adapter import target_indices
from edge_runtime.wire.manifest import TargetSpec
from edge_runtime.wire.plan import Indices

ROW_NORM: Final = float(1.0 / np.sqrt(3.0))
"""Norm of a row of A: that of I values uniform in +-1/sqrt(I)."""


class FlexLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "flexlora"

    def _combine(
        self,
        target: TargetSpec,
        old: tuple[Float64, Float64],
        updates: Sequence[DeviceUpdate],
        rng: np.random.Generator,
    ) -> tuple[Float64, Float64]:
        left, right = _stack(target, old, updates)
        return _decompose(left, right, old[0].shape[0], rng)


def _stack(
    target: TargetSpec, old: tuple[Float64, Float64], updates: Sequence[DeviceUpdate]
) -> tuple[Float64, Float64]:
    """Left ``[O, S]`` and right ``[S, I]`` whose product is the new W."""
    is_left = target.out_prune is not None
    size = target.out_features if is_left else target.in_features
    held = [_held(target, update, size) for update in updates]
    total = np.zeros(size)
    for update, indices in zip(updates, held, strict=True):
        total[indices] += update.num_examples
    lefts, rights = [], []
    for update, indices in zip(updates, held, strict=True):
        if update.num_examples == 0:
            continue
        a, b = factors(target, update)
        share = update.num_examples / total[indices]
        if is_left:
            lefts.append(_spread(b * share[:, None], indices, size))
            rights.append(a)
        else:
            lefts.append(b)
            rights.append(_spread((a * share).T, indices, size).T)
    unheld = np.flatnonzero(total == 0)
    if unheld.size:
        a, b = old
        lefts.append(_spread(b[unheld], unheld, size) if is_left else b)
        rights.append(a if is_left else _spread(a[:, unheld].T, unheld, size).T)
    return np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0)


def _held(target: TargetSpec, update: DeviceUpdate, size: int) -> Indices:
    """Coordinates of the pruned side that a device holds; all where no side is ever pruned."""
    rows, columns = target_indices(target, update.plan)
    held = rows if target.out_prune is not None else columns
    return np.arange(size, dtype=np.int64) if held is None else held


def _spread(rows: Float64, indices: Indices, size: int) -> Float64:
    """A matrix of ``size`` rows with ``rows`` at ``indices`` and zeros elsewhere."""
    out = np.zeros((size, rows.shape[1]))
    out[indices] = rows
    return out


def _decompose(left: Float64, right: Float64, rank: int, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """A ``[R, I]`` and B ``[O, R]`` of the best rank-R approximation of ``left @ right``."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, sizes, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    noise = np.finfo(np.float32).eps * sizes[0] if sizes.size else 0.0
    num_live = min(rank, int(np.count_nonzero(sizes > noise)))
    rows = (vt[:num_live] @ q_right.T) * ROW_NORM
    columns = (q_left @ u[:, :num_live]) * (sizes[:num_live] / ROW_NORM)
    sign = _signs(rows)
    bound = 1.0 / np.sqrt(right.shape[1])
    fresh = rng.uniform(-bound, bound, (rank, right.shape[1]))[num_live:]
    a = np.concatenate([rows * sign[:, None], fresh])
    b = np.concatenate([columns * sign, np.zeros((left.shape[0], rank - num_live))], axis=1)
    return a, b


def _signs(rows: Float64) -> Float64:
    """+-1 for each row, so that its element of the largest magnitude becomes positive: an SVD leaves the sign open."""
    largest = rows[np.arange(rows.shape[0]), np.argmax(np.abs(rows), axis=1)] if rows.size else np.ones(rows.shape[0])
    return np.where(largest < 0, -1.0, 1.0)
