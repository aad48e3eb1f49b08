"""Both kinds of reply as one model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_runtime.formats.adapter import Array


def first_order_weight(first_order_examples: int, zero_order_examples: int, share: float) -> float:
    """Weight of the first-order devices' model, in [0, 1]; the rest is that of zero-order devices.

    ``n_F / (n_F + share * n_Z)``: FedAvg's weights by examples (arXiv 1602.05629), with one factor for all examples
    behind zero-order updates (ours).

    Args:
        first_order_examples: n_F, of all first-order devices.
        zero_order_examples: n_Z, of all zero-order devices; not both are 0.
        share: above 0.
    """
    return first_order_examples / (first_order_examples + share * zero_order_examples)


def mix(first_order: Mapping[str, Array], zero_order: Mapping[str, Array], weight: float) -> dict[str, Array]:
    """``weight`` of one adapter and the rest of the other, in float64, rounded to float32 once.

    Both began the round at the same adapter, so the mean of the adapters is that adapter and the mean of the changes.
    A tensor that is the same in both stays so, to the last bit.
    """
    mixed = {}
    for name, first in first_order.items():
        second = np.asarray(zero_order[name], np.float64)
        mixed[name] = (second + weight * (np.asarray(first, np.float64) - second)).astype(np.float32)
    return mixed
