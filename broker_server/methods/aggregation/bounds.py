"""Bounds on adapters: adapters of devices beyond them are refused, and global adapters beyond them are not written.

One bound applies to every element of a factor or a dense tensor, and to the Frobenius norm of each target's B A. It is
10 000 for three reasons. The frozen weights that a product is added to have norms of tens to hundreds (4096 x
11008 elements of 0.02 have 134), so a larger product is not fine-tuning but a beginning overflow. Trained elements are
below a few hundred, because AdamW moves an element by about the learning rate in a step. And float16 on the wire holds
up to 65 504: the global adapter and the merged factors must keep to the same bound after aggregation.

The bound protects the run from overflow. It does not detect bad updates within the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from broker_server.errors import AggregationError
from broker_server.methods.aggregation.norms import product_norm
from broker_server.methods.aggregation.targets import Float32
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Merged

LARGEST: Final = 1e4
"""Largest magnitude of an element, and largest Frobenius norm of a product B A."""


def check_bounds(manifest: Manifest, adapter: Mapping[str, Float32], merged: Merged | None = None) -> None:
    """Refuse an adapter that is too large, or not finite; it may be under any plan and rank.

    Args:
        manifest: the artifact's manifest.
        adapter: float32 tensors; products without their A factor (a device that trains B alone) are not looked at.
        merged: factors folded into the frozen weights, whose elements are bounded too.

    Raises:
        AggregationError: names the first tensor, or target, that is beyond the bound.
    """
    factors = {} if merged is None else merged
    pairs = [(names.merged_a(m), a) for m, (a, _) in factors.items()]
    pairs += [(names.merged_b(m), b) for m, (_, b) in factors.items()]
    # cheap, and enough for most tensors
    squares = {name: float(np.vdot(value, value)) for name, value in adapter.items()}
    for name, value in [*adapter.items(), *pairs]:
        if squares.get(name, np.inf) <= LARGEST**2:
            continue
        largest = float(np.abs(value).max(initial=0.0))
        if not largest <= LARGEST:  # also refuses NaN
            msg = f"{name} is too large: an element has the magnitude {largest:g}, at most {LARGEST:g} is accepted"
            raise AggregationError(msg)
    for target in manifest.targets:
        name_a, name_b = names.lora_a(target.module), names.lora_b(target.module)
        a, b = adapter.get(name_a), adapter.get(name_b)
        if a is None or b is None:
            continue
        if squares[name_a] * squares[name_b] <= (LARGEST / 2) ** 2:  # ||B A|| <= ||B|| ||A||, with room for rounding
            continue
        norm = product_norm(a.astype(np.float64), b.astype(np.float64))
        if not norm <= LARGEST:
            msg = f"{target.module} is too large: B A has the norm {norm:g}, at most {LARGEST:g} is accepted"
            raise AggregationError(msg)
