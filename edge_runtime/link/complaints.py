"""Log lines about messages of others, limited in number so that they cannot fill a disk."""

from __future__ import annotations

import logging
from typing import Final

LOG_INTERVAL_S: Final = 60.0
"""Interval in which one sender gets one line, seconds."""
MAX_LINES: Final = 100
"""Most lines in an interval about all senders."""
MAX_LINE: Final = 500
"""Longest text of a line, characters."""
_MAX_LOGGED: Final = 1024
"""Most senders that are remembered to have a line in the log."""


class Complaints:
    """Warnings about senders: one line for each in an interval, with the number of omitted lines; at most so many."""

    def __init__(self, logger: logging.Logger, interval_s: float = LOG_INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._said: dict[str, tuple[float, int]] = {}
        self._since, self._num_lines = 0.0, 0

    def say(self, who: str, now: float, text: str) -> None:
        """Log a warning about ``who``, unless one was logged within the interval."""
        at, num_left_out = self._said.pop(who, (now - self._interval_s, 0))
        if now - at < self._interval_s:
            self._said[who] = (at, num_left_out + 1)
            return
        if now - self._since >= self._interval_s:
            self._since, self._num_lines = now, 0
        self._num_lines += 1
        if self._num_lines > MAX_LINES:
            return
        more = f" ({num_left_out} more like it since the last line)" if num_left_out else ""
        self._logger.warning("%s: %s%s", who, text[:MAX_LINE], more)
        self._said[who] = (now, 0)
        while len(self._said) > _MAX_LOGGED:
            del self._said[next(iter(self._said))]
