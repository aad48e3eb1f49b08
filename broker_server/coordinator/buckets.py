"""How much of something is allowed in a time: token buckets, and one line in the log for what went beyond. Pure."""

from __future__ import annotations

import dataclasses
import logging
from typing import Final

LOG_INTERVAL_S: Final = 60.0
"""Of lines about one device."""
MAX_LINE: Final = 500
"""Characters of a line about a device."""
_MAX_LOGGED: Final = 1024
"""Devices that are remembered to have a line in the log."""


@dataclasses.dataclass(frozen=True, slots=True)
class Allowance:
    """What may be used at once, and how fast it comes back."""

    burst: float
    per_s: float


@dataclasses.dataclass(slots=True)
class Bucket:
    """What is left of an allowance; full at first."""

    _used: float = 0.0
    _at: float = 0.0

    def take(self, allowance: Allowance, now: float, amount: float = 1.0) -> bool:
        """Use some of it; False, and nothing is used, where it is not left.

        Args:
            allowance: of now; it may differ from call to call.
            now: monotonic seconds.
            amount: to use.
        """
        self._used = max(0.0, self._used - allowance.per_s * max(0.0, now - self._at))
        self._at = now
        if self._used + amount > allowance.burst:
            return False
        self._used += amount
        return True


class Complaints:
    """Warnings about devices: one line for each device in an interval, with how many were left out."""

    def __init__(self, logger: logging.Logger, interval_s: float = LOG_INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, device_id: str, now: float, text: str) -> None:
        """Log a warning, unless one about the device was logged a moment ago."""
        at, num_left_out = self._said.pop(device_id, (now - self._interval_s, 0))
        if now - at < self._interval_s:
            self._said[device_id] = (at, num_left_out + 1)
            return
        more = f" ({num_left_out} more like it since the last line)" if num_left_out else ""
        self._logger.warning("device %s: %s%s", device_id, text[:MAX_LINE], more)
        self._said[device_id] = (now, 0)
        while len(self._said) > _MAX_LOGGED:
            del self._said[next(iter(self._said))]
