"""Token buckets: limits on an amount in a time. Pure; instants are monotonic seconds."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """The amount that may be used at once, and the rate at which it is refilled."""

    burst: float
    per_s: float


@dataclasses.dataclass(slots=True)
class Bucket:
    """The unused part of an allowance; full at the start."""

    _used: float = 0.0
    _at: float = 0.0

    def take(self, allowance: Allowance, now: float, amount: float = 1.0) -> bool:
        """Use an amount; return False, and use nothing, if less is left.

        Args:
            allowance: current allowance; it may differ from call to call.
            now: monotonic seconds.
            amount: amount to use.
        """
        self._used = max(0.0, self._used - allowance.per_s * max(0.0, now - self._at))
        self._at = now
        if self._used + amount > allowance.burst:
            return False
        self._used += amount
        return True
