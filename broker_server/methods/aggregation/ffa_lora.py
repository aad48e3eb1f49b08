"""``ffa_lora``: A never changes, B is averaged by examples (FFA-LoRA, arXiv 2403.12313).

All devices share the A that the run's seed drew, so a product is linear in B, and mean(B) A is mean(B A): exact while
ranks are equal. Devices train and send B alone, half of the factors of other rules.

Under different ranks and plans each element of B is averaged over the devices that hold it (ours): since A is shared,
component ``j`` means the same everywhere. Each component is then averaged exactly over those that have it. Where
columns of A are pruned, all columns share one B: the average is exact if the plans agree there, and a compromise if
not.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.elementwise import average_b
from broker_server.methods.aggregation.targets import TargetUpdates
from edge_runtime.formats.adapter import Trainable


class FfaLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "ffa_lora"
    trainable: ClassVar[Trainable] = "lora_b"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        del rng
        return Combined(a=target.old_a, b=average_b(target, [float(one.num_examples) for one in target.contributions]))
