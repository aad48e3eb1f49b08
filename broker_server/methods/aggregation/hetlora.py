"""``hetlora``: pad with zeros to the largest rank, weight by the norm of the product (HetLoRA, arXiv 2401.06432).

A and B are averaged separately with the weights ``||B_k A_k||_F / sum_l ||B_l A_l||_F`` in each target: inexact, as
``fedit``. A device of rank r gets the leading r components and counts with zeros in those beyond, so that they shrink.

Ours: a coordinate that a plan removed is not padded but left out of sum and weight; an element that nobody holds keeps
its old value; weights are the numbers of examples where all products are zero. The paper's self-pruning of ranks, a
penalty in the device's loss, is not done: here the scheduler chooses ranks.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.elementwise import average_a, average_b
from broker_server.methods.aggregation.norms import product_norm
from broker_server.methods.aggregation.targets import TargetUpdates


class HetLora(Aggregation):
    """See the module."""

    name: ClassVar[str] = "hetlora"

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        del rng
        weights = [product_norm(one.a, one.b) for one in target.contributions]
        if not any(weights):
            weights = [float(one.num_examples) for one in target.contributions]
        return Combined(a=average_a(target, weights, zero_pad=True), b=average_b(target, weights, zero_pad=True))
