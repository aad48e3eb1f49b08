"""The combination of a first-order and a zero-order model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_runtime.formats.adapter import Array


def first_order_weight(first_order_examples: int, zero_order_examples: int, share: float) -> float:
    """Weight of the first-order devices' model, in [0, 1]; the zero-order devices' model has the rest.

    ``n_F / (n_F + share * n_Z)``: FedAvg's weights by examples (arXiv 1602.05629), with one factor for the examples of
    zero-order devices (ours).

    Args:
        first_order_examples: n_F, examples of all first-order devices.
        zero_order_examples: n_Z, examples of all zero-order devices; not both are 0.
        share: factor of zero-order examples, above 0.
    """
    return first_order_examples / (first_order_examples + share * zero_order_examples)


def mix(first_order: Mapping[str, Array], zero_order: Mapping[str, Array], weight: float) -> dict[str, Array]:
    """Weighted mean of two adapters (``weight`` is that of the first), in float64, rounded to float32 once.

    Both started the round from the same adapter, so the mean of the adapters is this adapter plus the mean change. A
    tensor that is equal in both is unchanged, to the last bit.
    """
    mixed = {}
    for name, first in first_order.items():
        second = np.asarray(zero_order[name], np.float64)
        mixed[name] = (second + weight * (np.asarray(first, np.float64) - second)).astype(np.float32)
    return mixed
