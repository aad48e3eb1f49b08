"""Timing of new attempts after a failure with a cause outside this board: ever later, but soon when there is news."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from edge_runtime.link import backoff

LARGEST_S: Final = 600.0
"""Longest delay, seconds, after a failure that only the server can remove; a message from it shortens the delay."""

FLOOR_S: Final = 2.0
"""Shortest time from a failure to the next attempt when there is news, seconds: a server that never stops talking does
not keep a board busy."""


class Attempts:
    """A timer for something that is tried until it works.

    Args:
        rng: source of the jitter.
        clock: monotonic seconds.
    """

    def __init__(self, rng: random.Random, clock: Callable[[], float]) -> None:
        self._rng = rng
        self._clock = clock
        self._num_failed = 0
        self._failed_at = self._due_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Return whether it is time to try (again)."""
        return self._clock() >= self._due_at

    def failed(self, largest_s: float = LARGEST_S) -> float:
        """Note that an attempt failed.

        Args:
            largest_s: longest delay, seconds.

        Returns:
            Seconds to the next attempt: full jitter, see :mod:`edge_runtime.link.backoff`.
        """
        self._num_failed += 1
        self._failed_at = self._clock()
        delay_s = backoff.full_jitter(self._num_failed, self._rng, largest_s=largest_s)
        self._due_at = self._failed_at + delay_s
        return delay_s

    def news(self) -> None:
        """Note that somebody who may have removed the cause is here: try as soon as :data:`FLOOR_S` allows."""
        self._due_at = min(self._due_at, self._failed_at + FLOOR_S)

    def begin_anew(self) -> None:
        """Forget earlier failures after a success or for another task; :data:`FLOOR_S` still holds."""
        self._num_failed = 0
        self.news()
