"""The reward of an arm: its formula, its range, and the source of each part.

For device i in round t::

    reward_i = clip( (w1 l_i + w2 d_i + w3 b_i) / ( |T_i - mean T| / mean T + kappa ), 0, 1 )

    l_i = L_i / max_j L_j,   L_i = (1 - s_i) [loss_before - loss_after]+ / loss_before
    d_i = [s_i - largest s that device i had before]+
    b_i = ||change of B A of device i||_F / max_j ||...||_F

``s_i`` is the sparsity it trained at, in [0, 1); losses are on the device's own held-out examples; ``T_i`` is its
completion time; maxima and the mean go over the devices whose update was accepted in the round; [x]+ = max(x, 0). A
device without an accepted update has reward 0.

Sources: FedSpine (arXiv 2501.02438, third-party notes) is reported to combine local loss improvement, pruning progress,
importance of the LoRA update and the completion time relative to the others. The source has no formula, so all of the
above is ours: the quotient, the weights, and in particular

- the factor 1 - s_i: a sub-model starts worse, so its relative improvement looks larger the more was pruned, while it
  teaches the global model only the coordinates that it holds. Without the factor every bandit prunes to the end;
- d_i counts depths never reached before, so that going back and forth earns nothing;
- w1 + w2 + w3 = kappa, so that the quotient is at most 1 and clipping only guards against rounding.

The *gain* of an arm is the numerator over kappa, in [0, 1]. A term that no device reported (no local evaluation, say)
gives its weight to the others; if none was reported the gain is :func:`prior_gain`'s coverage 1 - s_i.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler.base import ArmOutcome
from broker_server.methods.scheduler.box import ArmBox, Floats
from edge_runtime.wire.work import Arm

KAPPA: Final = 0.25
"""Relative deviation of the completion time that halves the reward."""
LOSS_SHARE: Final = 0.65
"""Weight of the loss improvement, w1 / kappa."""
PRUNING_SHARE: Final = 0.05
"""Weight of the pruning progress, w2 / kappa."""
ADAPTER_SHARE: Final = 0.30
"""Weight of the adapter's change, w3 / kappa."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The gain and reward of an accepted update."""

    gain: float
    """Numerator over kappa, [0, 1]."""
    reward: float
    """[0, 1]."""
    completion_s: float | None
    """Time that the reward was computed with; None if none is known (no deviation then)."""


def combine(gain: Floats | float, completion_s: Floats | float, mean_completion_s: float) -> Floats:
    """The reward of gains in [0, 1] at completion times (same shape, seconds, positive)."""
    deviation = np.abs(np.asarray(completion_s) - mean_completion_s) / mean_completion_s
    return np.clip(KAPPA * np.asarray(gain) / (deviation + KAPPA), 0.0, 1.0)


def prior_gain(box: ArmBox, arms: Sequence[Arm]) -> Floats:
    """Prior gain of arms of a box, before any play, [num_arms], in (0, 1] (ours).

    The product over all axes: the remaining share for an axis that removes work, and ``1 - gain (1 - place)`` for every
    other axis, where ``place`` is 0 for its cheapest value and 1 for its dearest.
    """
    rows, gain = box.rows(arms), np.ones(len(arms))
    for axis, values, places in zip(box.axes, rows.T, box.places(rows).T, strict=True):
        gain = gain * (1.0 - values if axis.removes else 1.0 - axis.gain * (1.0 - places))
    return gain


def completion_s(outcome: ArmOutcome) -> float | None:
    """Completion time of an assignment, else the time that the device measured, else None."""
    seconds = outcome.completion_s
    if seconds is None and outcome.measurements is not None:
        seconds = outcome.measurements.fetch_s + outcome.measurements.prepare_s + outcome.measurements.train_s
    return seconds if seconds is not None and math.isfinite(seconds) and seconds > 0 else None


def credit_round(outcomes: Sequence[ArmOutcome], deepest: Mapping[str, float]) -> dict[str, Credit]:
    """Gain and reward of every accepted update of one round.

    Args:
        outcomes: outcomes of one round, at most one for a device; outcomes without an accepted update are ignored.
        deepest: largest sparsity of each device in earlier rounds; missing devices had none.
    """
    accepted = [outcome for outcome in outcomes if outcome.outcome is Outcome.ACCEPTED]
    if not accepted:
        return {}
    sparsity = np.array([outcome.sparsity for outcome in accepted])
    progress = np.array([max(0.0, o.sparsity - deepest.get(o.device_id, 0.0)) for o in accepted])
    terms = [
        (LOSS_SHARE, _relative(np.array([_improvement(outcome) for outcome in accepted]) * (1.0 - sparsity))),
        (ADAPTER_SHARE, _relative(np.array([_delta(outcome) for outcome in accepted]))),
    ]
    known = [(share, values) for share, values in terms if values is not None]
    if known:
        scale = (LOSS_SHARE + ADAPTER_SHARE) / sum(share for share, _ in known)
        gain = sum((scale * share * values for share, values in known), PRUNING_SHARE * progress)
    else:
        gain = (1.0 - PRUNING_SHARE) * (1.0 - sparsity) + PRUNING_SHARE * progress
    times = [completion_s(outcome) for outcome in accepted]
    timed = [seconds for seconds in times if seconds is not None]
    mean = float(np.mean(timed)) if timed else 1.0
    return {
        outcome.device_id: Credit(
            gain=float(g), reward=float(combine(float(g), mean if t is None else t, mean)), completion_s=t
        )
        for outcome, g, t in zip(accepted, gain, times, strict=True)
    }


def _improvement(outcome: ArmOutcome) -> float:
    """Relative improvement of the local loss, [0, 1]; NaN if it was not measured."""
    local = outcome.evaluation
    if local is None or not (math.isfinite(local.loss_before) and math.isfinite(local.loss_after)):
        return math.nan
    return min(1.0, max(0.0, local.loss_before - local.loss_after) / max(local.loss_before, 1e-12))


def _delta(outcome: ArmOutcome) -> float:
    return math.nan if outcome.adapter_delta is None else outcome.adapter_delta


def _relative(values: Floats) -> Floats | None:
    """Values over their maximum, with the mean for unknown ones; None if all are unknown, zeros if none is positive."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return None
    largest = float(known.max())
    if largest <= 0.0:
        return np.zeros_like(values)
    return np.clip(np.where(np.isfinite(values), values, known.mean()) / largest, 0.0, 1.0)
