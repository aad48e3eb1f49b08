"""``flora``: stack the factors, fold their product into the frozen weight, start anew (FLoRA, arXiv 2409.05976).

Stacking [p_1 B_1 ... p_K B_K] and [A_1; ...; A_K] is the exact sum by examples without any decomposition. It becomes
part of the frozen weight, and the next round starts from a fresh A and B = 0. Under different plans the weights are
those of the devices that hold a coordinate, see :mod:`broker_server.methods.aggregation.exact` (ours).

Ours as well: devices keep nothing between rounds but the base weights, so each is sent all that was merged so far, as
factors that are compressed again in every round and never have more than min(O, I) components; and all start from the
same fresh A.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.exact import stacked_sum
from broker_server.methods.aggregation.factorise import fresh_a
from broker_server.methods.aggregation.targets import TargetUpdates


class FLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "flora"
    restarts: ClassVar[bool] = True

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        return Combined(
            a=fresh_a(target.rank, target.spec.in_features, rng),
            b=np.zeros_like(target.old_b),
            folded=stacked_sum(target, target.by_examples(), holds_components=False),
        )
