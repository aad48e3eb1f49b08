"""Ridge regression of class indicators from sums over examples: the same whoever holds which example."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from broker_server.errors import AggregationError

Float64 = npt.NDArray[np.float64]

PENALTY: Final = 1e-5
"""Of the squared weights, for each example, where nobody says otherwise."""


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
    ridge = np.full(gram.shape[0], num_examples * penalty)
    ridge[-1] = 0.0
    try:
        solved = np.asarray(np.linalg.solve(gram + np.diag(ridge), cross.T).T, np.float64)
    except np.linalg.LinAlgError as error:
        msg = f"the sums of {num_examples:.0f} examples determine no head ({error}): give a larger weight_decay"
        raise AggregationError(msg) from error
    return solved[:, :-1], solved[:, -1]
