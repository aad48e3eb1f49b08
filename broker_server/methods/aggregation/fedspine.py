"""``fedspine``: an exact sum in which a device counts only in units that it holds, weighted by their importance to it.

The paper (arXiv 2501.02438) says that updates are rebuilt into compatible shapes and combined by weights that consider
heterogeneity. The formulas are ours. As in ``flexlora`` products are summed exactly and decomposed again to the global
rank, with three differences:

* *A device holds components, too.* A device of rank r trains the leading r components and does not affect the others.
  (In ``flexlora`` it counts with zero in the others, so every small rank in a round shrinks them.) The server sends it
  the other components too, to be merged into its frozen weights, so that it does not learn them once more: every device
  starts from the whole global model, whatever its rank. That costs a download of R instead of r components; training
  and upload stay those of rank r. With equal ranks nothing differs.
* *A device does not change units and components that it does not hold.* In units that its plan removed, and in
  components beyond its rank, it counts with the old value, by its examples. So every device's change enters the model
  with its share of all examples, whatever it held. (If a coordinate were divided by the weight of its holders only, as
  ``fedspine_holders`` does, devices that hold more units would count more in the units that only they hold. Their
  labels would outweigh the others' there, round after round: with skewed labels the whole model would predict the
  classes of the large devices. Without skew it learns faster. docs/aggregation.md has the figures.)
* *Weights are those of a unit.* At the coordinates of unit ``u`` (a head, a channel) device ``k`` weighs

      w_ku = n_k clip(s_ku / mean_u, 1/2, 2)

  with ``n_k`` its examples, ``s_ku`` its importance of the unit, and ``mean_u`` the mean of those by examples over the
  devices that hold the unit. Importance estimates how much the device's loss depends on the unit. Within the bounds the
  result is the W that minimises sum_k n_k s_ku |W_u - W_ku|^2, a penalty for moving each device's unit away from where
  its own training left it: averaging by Fisher information (Matena and Raffel, arXiv 2111.09832), with one score for a
  unit in its place.

The bounds keep any device within four times the weight of another with as many examples, however its scores look.
Scores of different devices are made comparable by their mean over the units that all of them hold. A device without
scores, or with none above zero there, has the factor 1; if nobody sends scores the weights are the examples. The
classifier, which has no units, is averaged by examples.
"""

from __future__ import annotations

import functools
from typing import ClassVar, Final

import numpy as np

from broker_server.methods.aggregation.base import Aggregation, Combined
from broker_server.methods.aggregation.exact import stacked_sum
from broker_server.methods.aggregation.factorise import decompose
from broker_server.methods.aggregation.targets import Float64, TargetUpdates
from edge_runtime.formats.plan import Indices

LARGEST_FACTOR: Final = 2.0
"""Importance multiplies or divides a device's weight at a unit by no more than this."""


class FedSpine(Aggregation):
    """See the module."""

    name: ClassVar[str] = "fedspine"
    sends_rest: ClassVar[bool] = True
    absent_keep: ClassVar[bool] = True
    """Whether a device counts with the old value in units and components that it does not hold."""

    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        weights = unit_weights(target)
        left, right = stacked_sum(target, weights, holds_components=True, absent_keep=self.absent_keep)
        a, b = decompose(left, right, target.rank, rng)
        return Combined(a=a, b=b)


def unit_weights(target: TargetUpdates) -> list[Float64]:
    """The weight of each contribution at each coordinate that it holds; see the module."""
    weights = target.by_examples()
    scaled: list[tuple[int, Indices, Float64]] = []
    held = [one.units for one in target.contributions if one.units is not None and one.importance is not None]
    if not held:
        return weights
    common = functools.reduce(np.intersect1d, held)
    for index, one in enumerate(target.contributions):
        if one.units is None or one.importance is None:
            continue
        scores = one.importance.astype(np.float64)
        shared = scores[np.isin(one.units, common)]
        if shared.any():
            scaled.append((index, one.units, scores / shared.mean()))
    num_units = 1 + max(int(units[-1]) for units in held)
    total, examples = np.zeros(num_units), np.zeros(num_units)
    for index, units, scores in scaled:
        total[units] += target.contributions[index].num_examples * scores
        examples[units] += target.contributions[index].num_examples
    for index, units, scores in scaled:
        mean = total[units] / examples[units]
        ratio = np.divide(scores, mean, out=np.ones_like(scores), where=mean > 0)
        factor = np.clip(ratio, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
        weights[index] *= np.repeat(factor, weights[index].size // units.size)
    return weights
