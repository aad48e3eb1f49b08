"""``fedex_lora``: average A and B, and add the residual to the frozen weight (FedEx-LoRA, arXiv 2410.09432).

The averages are those of ``fedit``. The residual, the exact sum by examples minus mean(B) mean(A), has a small rank:

    residual = [ L  -mean(B) ] [ M ; mean(A) ],     L M the exact sum of :mod:`broker_server.methods.aggregation.exact`

and is added to the merged factors, so that adapter and merged factors together are the exact sum. As with ``flora`` the
merged factors of all rounds are sent to devices compressed (ours).

The paper has equal ranks. Otherwise a device counts only in the components that it has, in the averages and in the sum
alike (ours): if it counted with zero in the sum alone, the residual would subtract in every round what the averages
keep, and grow without bound.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.elementwise import average_a, average_b
from broker_server.methods.aggregation.exact import stacked_sum
from broker_server.methods.aggregation.targets import TargetUpdates


class FedExLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "fedex_lora"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        del rng
        weights = [float(one.num_examples) for one in target.contributions]
        a, b = average_a(target, weights), average_b(target, weights)
        left, right = stacked_sum(target, target.by_examples(), holds_components=True)
        return Combined(a=a, b=b, folded=(np.concatenate([left, -b], axis=1), np.concatenate([right, a])))
