"""Repetition of messages that were not answered: growing delays with jitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from edge_runtime.link import backoff

FIRST_S: Final = 5.0
LARGEST_S: Final = 60.0


class Repeat:
    """A timer for one unanswered message: due at once, then after 5 s, 10 s, ... 60 s, each shortened by up to half.

    Args:
        rng: source of the jitter.
        clock: monotonic seconds.
    """

    def __init__(self, rng: random.Random, clock: Callable[[], float]) -> None:
        self._rng = rng
        self._clock = clock
        self._num_said = 0
        self._due_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Return whether it is time to send the message (again)."""
        return self._clock() >= self._due_at

    def said(self) -> None:
        """Note that the message was sent now."""
        self._num_said += 1
        longest = backoff.bound(self._num_said, FIRST_S, LARGEST_S)
        self._due_at = self._clock() + self._rng.uniform(longest / 2, longest)

    def heard(self) -> None:
        """Note that the receiver has the message and works on it: the next repetition is put off."""
        self._num_said = 0
        self.said()

    def restart(self) -> None:
        """Make the message due at once, as if it had never been sent (after a reconnect)."""
        self._num_said = 0
        self._due_at = float("-inf")
