"""The growth of a device's pruning ratio: over rounds by a cubic ramp, inside an assignment in steps with recovery.

Time ``t`` is counted in rounds, the end of round ``n`` being ``n``. With ``w`` warm-up rounds and ``r`` ramp rounds the
share of an arm's ratio that is played is

    s(t) = 1 - (1 - x)^3,    x = clip((t - w) / r, 0, 1)

which is the cubic schedule of LoRAPrune (arXiv 2305.18403, its code) after Zhu and Gupta (arXiv 1710.01878), without a
cool-down: the deploy rounds take its place. An assignment of ``L`` steps is cut into ``L // recovery_steps`` segments
(one at least), each of ``recovery_steps`` or more; the k-th of K segments of round ``n`` is played at
``s(n - 1 + k / K)``, so the last one of the ramp has the arm's whole ratio. Ratios on the ramp are multiples of 1/64
(both ours).
"""

from __future__ import annotations

import dataclasses

from broker_server.methods.pruning.config import PruningConfig
from edge_runtime.wire.arms import PRUNING_RATIO


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of an assignment: from optimizer step ``at_step`` (1-based), ``pruning_ratio`` of the units is removed."""

    at_step: int
    pruning_ratio: float


def ramp(config: PruningConfig, rounds: float) -> float:
    """Share of an arm's ratio that is used ``rounds`` after the start, in [0, 1]; it never decreases."""
    if config.ramp_rounds == 0:
        return 1.0 if rounds > config.warmup_rounds else 0.0
    x = min(1.0, max(0.0, (rounds - config.warmup_rounds) / config.ramp_rounds))
    return float(1.0 - (1.0 - x) ** 3)


def segments(
    config: PruningConfig, pruning_ratio: float, round_number: int, num_local_steps: int
) -> tuple[Segment, ...]:
    """Ratios of one assignment, by ascending step and ratio, the first at step 1.

    Args:
        config: the schedule.
        pruning_ratio: ratio of the arm, which is the largest ratio used.
        round_number: 1 or more.
        num_local_steps: optimizer steps of the assignment.
    """
    num_segments = max(1, num_local_steps // config.recovery_steps)
    out: list[Segment] = []
    for index in range(num_segments):
        share = ramp(config, round_number - 1 + (index + 1) / num_segments)
        ratio = pruning_ratio if share == 1.0 else min(pruning_ratio, quantised(share * pruning_ratio))
        if not out or ratio > out[-1].pruning_ratio:
            out.append(Segment(at_step=1 + index * config.recovery_steps, pruning_ratio=ratio))
    return tuple(out)


def quantised(ratio: float) -> float:
    """The nearest multiple of 1/64.

    >>> quantised(0.3)
    0.296875
    """
    return round(ratio * PRUNING_RATIO.per_unit) / PRUNING_RATIO.per_unit


def is_deploy(config: PruningConfig, round_number: int, num_rounds: int) -> bool:
    """Return whether all devices train the deployed plan in this round, under importance that no longer changes."""
    return round_number > num_rounds - config.deploy_rounds
