"""Ridge regression of class indicators from sums over examples; it does not depend on the examples' distribution.

Its scores are near 0 and 1, which are far too small as logits. :func:`likelihood_scale` computes their factor, from the
same sums.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_server.errors import AggregationError

Float64 = npt.NDArray[np.float64]

PENALTY: Final = 1e-5
"""Default penalty of the squared weights, for each example."""

LARGEST_SCALE: Final = 100.0
"""Largest factor of scores."""
NUM_DRAWS: Final = 512
"""Points at which an expectation over a normal distribution is evaluated."""
NUM_HALVINGS: Final = 40
"""Bisection steps over the range of the logarithm, until far below any visible difference in loss."""


def solve_ridge(gram: Float64, cross: Float64, penalty: float) -> tuple[Float64, Float64]:
    """The minimiser over W, b of ``sum |W p + b - y|^2 + n penalty |W|^2``, ``y`` being 1 for the class of an example.

    With features extended by a one, ``q = (p, 1)``, it solves ``(sum q q^T + n penalty J) (W, b)^T = sum q y^T``, where
    ``J`` is the identity without its last entry: the bias is not penalised (Hastie, Tibshirani, Friedman: The Elements
    of Statistical Learning, 3.4.1).

    Args:
        gram: sum of ``q q^T``, ``[H + 1, H + 1]``; its last entry is the number of examples ``n``.
        cross: sum of ``y q^T``, ``[C, H + 1]``.
        penalty: of the squared weights, for each example, 0 or more; 0 needs features of full rank.

    Returns:
        Weight ``[C, H]`` and bias ``[C]``.

    Raises:
        AggregationError: the sums do not determine a solution.
    """
    num_examples = gram[-1, -1]
    try:
        solved = np.asarray(np.linalg.solve(_penalised(gram, penalty), cross.T).T, np.float64)
    except np.linalg.LinAlgError as error:
        msg = f"the sums of {num_examples:.0f} examples determine no head ({error}): give a larger weight_decay"
        raise AggregationError(msg) from error
    return solved[:, :-1], solved[:, -1]


def likelihood_scale(gram: Float64, cross: Float64, penalty: float, weight: Float64, bias: Float64) -> float:
    """Return the factor for the scores of a ridge solution that gives them, as logits, the least cross-entropy.

    Ours. A head's scores of its own training examples are too good. The scores of a head that was fitted without
    example i are ``(s_i - h_i y_i) / (1 - h_i)``, with its leverage ``h_i``. All leverages are replaced by their mean,
    ``tr((G + n penalty J)^-1 G) / n``, as in generalised cross-validation (Golub, Heath, Wahba 1979). The sums give the
    mean scores of each class, and the covariance within classes; scores are assumed to be normal. By Laplace's rule of
    succession one in ``n + 2`` examples is assumed to have a random class; without this the best scale for separable
    classes would be infinite. The expected cross-entropy is convex in the scale.

    Args:
        gram: see :func:`solve_ridge`.
        cross: see :func:`solve_ridge`.
        penalty: see :func:`solve_ridge`.
        weight: of the solution, ``[C, H]``.
        bias: of the solution, ``[C]``.

    Returns:
        The factor, above 0 and at most :data:`LARGEST_SCALE`; 1 if there are no more examples than features, because
        the sums then tell nothing of scores on other examples.
    """
    num_examples, counts = gram[-1, -1], cross[:, -1]
    leverage = float(np.trace(np.linalg.solve(_penalised(gram, penalty), gram)) / num_examples)
    if leverage > 0.95:
        return 1.0
    head = np.concatenate([weight, bias[:, None]], axis=1)
    held = counts > 0
    own = (head @ cross[held].T / counts[held]).T  # [classes that are there, C]: mean scores of each
    within = (head @ gram @ head.T - (own.T * counts[held]) @ own) / num_examples
    means = (own - leverage * np.eye(len(counts))[held]) / (1 - leverage)
    values, vectors = np.linalg.eigh(within)
    spread = vectors * np.sqrt(np.maximum(values, 0.0)) / (1 - leverage)
    draws = np.random.default_rng(0).normal(size=(NUM_DRAWS // 2, len(counts)))
    noise = np.concatenate([draws, -draws]) @ spread.T
    shares, low, high = counts[held] / num_examples, -math.log(LARGEST_SCALE), math.log(LARGEST_SCALE)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        slope = _slope(math.exp(middle), means, noise, np.flatnonzero(held), shares, 1 / (num_examples + 2))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(high)


def _slope(
    scale: float, means: Float64, noise: Float64, classes: npt.NDArray[np.int64], shares: Float64, doubt: float
) -> float:
    """Derivative of the expected cross-entropy by the scale of the scores.

    Args:
        scale: of the scores.
        means: of the scores of each class that is there, ``[classes, C]``.
        noise: draws of the deviation of scores from their means, ``[draws, C]``.
        classes: indices of these classes.
        shares: of the examples.
        doubt: share of the examples that are of any class.
    """
    total = 0.0
    for mean, own, share in zip(means, classes, shares, strict=True):
        scores = mean + noise
        weights = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)))
        weights /= weights.sum(axis=1, keepdims=True)
        right = (1 - doubt) * scores[:, own] + doubt * scores.mean(axis=1)
        total += share * float(((weights * scores).sum(axis=1) - right).mean())
    return total


def _penalised(gram: Float64, penalty: float) -> Float64:
    ridge = np.full(gram.shape[0], gram[-1, -1] * penalty)
    ridge[-1] = 0.0
    return np.asarray(gram + np.diag(ridge), np.float64)
