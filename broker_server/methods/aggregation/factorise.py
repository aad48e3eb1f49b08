"""Factors of a product, without the product: QR of both sides leaves a small matrix whose SVD is the product's.

With ``left`` = Q_L R_L ``[O, S]`` and ``right``' = Q_M R_M ``[I, S]``, and U D V' the SVD of R_L R_M', that of
``left @ right`` is (Q_L U) D (Q_M V)'. The small matrix is ``min(O, S)`` by ``min(I, S)``; time is (O + I) S^2 while S,
the number of stacked components, is below O and I. For larger S the small matrix is as large as the product.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from broker_server.methods.aggregation.targets import Float64

ROW_NORM: Final = float(1.0 / np.sqrt(3.0))
"""Expected norm of a row of A with I values uniform in +-1/sqrt(I)."""

_ROUNDING: Final = 1e-13
"""Rounding error that float64 may leave of components that cancel, relative to the factors' norms."""


def compress(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """A ``[m, I]`` and B ``[O, m]`` of the same product, ``m`` as small as it can be, 0 for a product of zero.

    Both get the square root of the singular values, so that neither leaves the range of a small float.
    """
    u, sizes, vt = _svd(left, right)
    roots = np.sqrt(sizes)
    return vt * roots[:, None], u * roots


def decompose(left: Float64, right: Float64, rank: int, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """A ``[R, I]`` and B ``[O, R]`` of the best rank-R approximation in Frobenius norm (Eckart and Young).

    Exact if the product has no more than R components. The choice of factors is ours: rows of A are orthogonal with the
    norm ``1/sqrt(3)`` of a row under PEFT's initialisation (uniform within 1/sqrt(I)), largest component first, and B
    has the remaining scale. So training goes on with an A of the usual scale, and a device of a smaller rank gets the
    leading components. A component with zero in both factors would never train again, so it gets a fresh row of A, and
    zeros in B.
    """
    u, sizes, vt = _svd(left, right)
    u, sizes, vt = u[:, :rank], sizes[:rank], vt[:rank]
    sign = _signs(vt)
    live_a = vt * (sign * ROW_NORM)[:, None]
    live_b = u * (sign * sizes / ROW_NORM)
    num_fresh = rank - sizes.size
    fresh = fresh_a(rank, right.shape[1], rng)[rank - num_fresh :]
    return np.concatenate([live_a, fresh]), np.concatenate([live_b, np.zeros((left.shape[0], num_fresh))], axis=1)


def fresh_a(rank: int, num_in: int, rng: np.random.Generator) -> Float64:
    """A ``[rank, I]`` by PEFT's initialisation: uniform within 1/sqrt(I)."""
    bound = 1.0 / np.sqrt(num_in)
    return rng.uniform(-bound, bound, (rank, num_in))


def _svd(left: Float64, right: Float64) -> tuple[Float64, Float64, Float64]:
    """U ``[O, m]``, singular values ``[m]`` in descending order, V' ``[m, I]``, without components that are noise."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    u, sizes, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    largest = sizes[0] if sizes.size else 0.0
    noise = max(np.finfo(np.float32).eps * largest, _ROUNDING * np.linalg.norm(r_left) * np.linalg.norm(r_right))
    num_live = int(np.count_nonzero(sizes > noise))
    return q_left @ u[:, :num_live], sizes[:num_live], vt[:num_live] @ q_right.T


def _signs(rows: Float64) -> Float64:
    """+-1 for each row, so that its element of the largest magnitude becomes positive: an SVD leaves the sign open."""
    largest = rows[np.arange(rows.shape[0]), np.argmax(np.abs(rows), axis=1)] if rows.size else np.ones(rows.shape[0])
    return np.where(largest < 0, -1.0, 1.0)
