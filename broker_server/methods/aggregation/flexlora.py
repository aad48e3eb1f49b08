"""``flexlora``: the exact sum of the products B A by examples, decomposed again to the global rank (arXiv 2402.11505).

The sum is that of :mod:`broker_server.methods.aggregation.exact`, where a device of a smaller rank counts with zero in
the components it never had, as in the paper; the decomposition is
:func:`broker_server.methods.aggregation.factorise.decompose`. Exact up to the cut at rank R, which is the best
approximation of that rank.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.exact import stacked_sum
from broker_server.methods.aggregation.factorise import decompose
from broker_server.methods.aggregation.targets import TargetUpdates


class FlexLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "flexlora"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        left, right = stacked_sum(target, target.by_examples(), holds_components=False)
        a, b = decompose(left, right, target.rank, rng)
        return Combined(a=a, b=b)
