"""Arms as people write them, ``RATIO:RANK``, and the range that they must lie in."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from edge_runtime.bounds import limits
from edge_runtime.errors import ExitCode, WireError
from edge_runtime.wire.messages import Arm

MAX_PRUNING_RATIO: Final = 0.95
"""Largest pruning ratio an arm may ask for."""

_ARM: Final = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*:\s*([0-9]{1,20})\s*")


class ArmError(WireError):
    """An arm is malformed, or outside its range."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Arms from ``RATIO:RANK,RATIO:RANK``.

    Raises:
        ArmError: not of that form, or outside the range.

    >>> [(a.pruning_ratio, a.rank) for a in parse_arms("0.0:8,0.5:4")]
    [(0.0, 8), (0.5, 4)]
    """
    arms = []
    for part in text.split(","):
        match = _ARM.fullmatch(part)
        if match is None:
            msg = f"arm {part.strip()[:50]!r} is not RATIO:RANK, such as 0.25:8"
            raise ArmError(msg)
        arms.append(check_arm(Arm(pruning_ratio=float(match[1]), rank=int(match[2]))))
    return tuple(arms)


def format_arms(arms: tuple[Arm, ...]) -> str:
    """Inverse of :func:`parse_arms`."""
    return ",".join(f"{Decimal(repr(arm.pruning_ratio)):f}:{arm.rank}" for arm in arms)  # never as 1e-05


def check_arm(arm: Arm) -> Arm:
    """Return an arm that is inside the range.

    Raises:
        ArmError: it is not.
    """
    if not (0.0 <= arm.pruning_ratio <= MAX_PRUNING_RATIO and 1 <= arm.rank <= limits.MAX_RANK):
        msg = (
            f"arm {arm.pruning_ratio}:{arm.rank} is outside its range: pruning ratio 0 to {MAX_PRUNING_RATIO}, "
            f"rank 1 to {limits.MAX_RANK}"
        )
        raise ArmError(msg)
    return arm
