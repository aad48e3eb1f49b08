"""Figures of schedulers on a simulated fleet: distance from the oracle, speed, cost, and recovery after a slow-down."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.bandit_fleet import Played

Floats = npt.NDArray[np.float64]

NEAR = 1.05
"""Round time over the oracle's that counts as reached."""
WINDOW = 5
"""Rounds of the running median: a single round may be a lucky or an unlucky one."""
EARLY_ROUNDS = 10
"""Infeasible plays are counted after these."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One scheduler, one seed; rounds are 1-based."""

    round_time_ratio: float
    """Median round time over the oracle's, last 20 rounds before the end."""
    speed_ratio: float
    """Median learning speed over the oracle's, same rounds: a scheduler that prunes all to the end has short rounds."""
    settled_round: int | None
    """First round within 5 % of the oracle's time from which on the running median of five is too; None: never."""
    infeasible_ratio: float
    """Infeasible plays over all plays after round 10."""
    regret: float
    """Sum over rounds of 1 - J / J of the oracle."""
    regret_exponent: float
    """Slope of log cumulative regret over log round, from round 5; below 1 = sublinear."""
    late_exponent: float
    """The same over the second half."""
    idle_ratio: float
    """Mean share of a round that a device waits, last 20 rounds."""


def figures(played: Sequence[Played], oracle: Sequence[Played]) -> Figures:
    """Compare a run with the oracle's on the same fleet and seed."""
    ratio = time_ratios(played, oracle)
    speed = np.array([mine.speed / best.speed for mine, best in zip(played, oracle, strict=True)])
    regret = cumulative_regret(played, oracle)
    late = played[EARLY_ROUNDS:]
    return Figures(
        round_time_ratio=float(np.median(ratio[-20:])),
        speed_ratio=float(np.median(speed[-20:])),
        settled_round=settled(ratio),
        infeasible_ratio=sum(p.num_infeasible for p in late) / max(1, sum(p.num_plays for p in late)),
        regret=float(regret[-1]),
        regret_exponent=exponent(regret, 5),
        late_exponent=exponent(regret, len(regret) // 2),
        idle_ratio=float(np.mean([p.idle_ratio for p in played[-20:]])),
    )


def time_ratios(played: Sequence[Played], oracle: Sequence[Played]) -> Floats:
    """Round time over the oracle's [num_rounds]."""
    return np.array([mine.round_s / best.round_s for mine, best in zip(played, oracle, strict=True)])


def settled(ratio: Floats) -> int | None:
    """First round (1-based) that is near, and from which on the running median is; None if it never comes.

    >>> settled(np.array([3.0, 1.2, 1.0, 1.0, 1.3, 1.0, 1.0, 1.0]))
    3
    """
    medians = [float(np.median(ratio[k : k + WINDOW])) for k in range(max(1, len(ratio) - WINDOW + 1))]
    far = [k for k, median in enumerate(medians) if median > NEAR]
    first = far[-1] + 1 if far else 0
    while first < len(medians) and ratio[first] > NEAR:
        first += 1
    return None if first >= len(medians) else first + 1


def recovery(ratio: Floats, from_round: int) -> int | None:
    """Rounds after a change (in ``from_round``) until settled again: 0 = at once; None: not before the end."""
    again = settled(ratio[from_round - 1 :])
    return None if again is None else again - 1


def cumulative_regret(played: Sequence[Played], oracle: Sequence[Played]) -> Floats:
    """Running sum of 1 - J / J of the oracle [num_rounds]."""
    return np.cumsum([1 - mine.speed / best.speed for mine, best in zip(played, oracle, strict=True)])


def exponent(regret: Floats, from_round: int) -> float:
    """Least-squares slope of log regret over log round from a round on; 0 if there is no regret."""
    rounds = np.arange(1, len(regret) + 1)
    keep = (rounds >= from_round) & (regret > 0)
    if keep.sum() < 2:
        return 0.0
    return float(np.polyfit(np.log(rounds[keep]), np.log(regret[keep]), 1)[0])
