"""A scheduler that survives hostile replies: a reply that it cannot learn from is logged and ignored.

Devices measure their own work, and a client with a device's credentials can send any values. Messages keep numbers
within their ranges (:mod:`edge_runtime.bounds.fields`). This module ignores impossible times. If learning or choosing
still fails, the scheduler drops the replies of that round, or its state. The run continues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from broker_server.methods.scheduler.base import ArmOutcome, Scheduler
from broker_server.methods.scheduler.reward import completion_s
from edge_runtime.bounds import limits
from edge_runtime.wire.work import Arm

logger = logging.getLogger(__name__)

SHORTEST_S: Final = 1e-6
"""Shortest possible time of an assignment, seconds."""

MOST: Final = 1e15
"""Largest valid number in a scheduler's state."""

_INDIGESTIBLE: Final = (ArithmeticError, ValueError, TypeError, LookupError, AttributeError, StopIteration)
"""Errors of computing with impossible numbers, or of reading a damaged state (a LinAlgError is a ValueError)."""


class GuardedScheduler:
    """A wrapper of a scheduler, with the same methods."""

    def __init__(self, make: Callable[[], Scheduler], saved: dict[str, Any] | None = None) -> None:
        """Make a scheduler, and restore its saved state if that is usable.

        Args:
            make: makes a new scheduler.
            saved: a state of :meth:`to_json`; None = there is none.
        """
        self._make = make
        self._scheduler = make()
        if saved is not None:
            try:
                check_state(saved)
                self._scheduler.load_json(saved)
            except _INDIGESTIBLE as error:
                self._begin_again("what it had learnt cannot be read", error)
        self._before: dict[str, Any] | None = None
        """State before the first reply of this round was observed."""
        self._observed: list[ArmOutcome] = []

    @property
    def name(self) -> str:
        """Return the name of the wrapped scheduler."""
        return self._scheduler.name

    def choose(self, round_number: int, device_ids: Sequence[str], rng: np.random.Generator) -> dict[str, Arm]:
        """See :meth:`.base.Scheduler.choose`."""
        self._before = None
        try:
            return self._scheduler.choose(round_number, device_ids, rng)
        except _INDIGESTIBLE as error:
            self._begin_again(f"cannot choose arms for round {round_number}", error)
            return self._scheduler.choose(round_number, device_ids, rng)

    def choose_again(self, round_number: int, device_id: str, rng: np.random.Generator) -> Arm | None:
        """See :meth:`.base.Scheduler.choose_again`."""
        try:
            return self._scheduler.choose_again(round_number, device_id, rng)
        except _INDIGESTIBLE as error:
            logger.warning("scheduler %s cannot choose another arm for %s: %s", self.name, device_id, error)
            return None

    def observe(self, outcome: ArmOutcome) -> None:
        """See :meth:`.base.Scheduler.observe`; a reply that cannot be learnt from changes nothing."""
        if self._before is None:
            self._before, self._observed = self._scheduler.to_json(), []
        if (believed := believable(outcome)) is not outcome:
            logger.warning(
                "round %d: the time that %s reports is not believed", outcome.round_number, outcome.device_id
            )
        try:
            self._scheduler.observe(believed)
            self._observed.append(believed)
        except _INDIGESTIBLE as error:
            logger.warning("scheduler %s cannot learn from a reply of %s: %s", self.name, outcome.device_id, error)
            self._go_back(self._observed)

    def observe_round(self, outcomes: Sequence[ArmOutcome]) -> None:
        """See :meth:`.base.Scheduler.observe_round`; a round that cannot be learnt from changes nothing."""
        try:
            self._scheduler.observe_round([believable(outcome) for outcome in outcomes])
            check_state(self._scheduler.to_json())
        except _INDIGESTIBLE as error:
            numbers = {outcome.round_number for outcome in outcomes}
            logger.warning("scheduler %s cannot learn from round %s: %s", self.name, numbers or "", error)
            self._go_back([])
        self._before = None

    def to_json(self) -> dict[str, Any]:
        """See :meth:`.base.Scheduler.to_json`."""
        return self._scheduler.to_json()

    def _go_back(self, outcomes: Sequence[ArmOutcome]) -> None:
        """Restore the state before this round, and observe again the replies that the scheduler could learn from."""
        scheduler = self._make()
        if self._before is not None:
            scheduler.load_json(self._before)
        for outcome in outcomes:
            scheduler.observe(outcome)
        self._scheduler = scheduler

    def _begin_again(self, what: str, error: Exception) -> None:
        self._scheduler = self._make()
        logger.warning("scheduler %s %s (%s: %s); it starts again", self.name, what, type(error).__name__, error)


def believable(outcome: ArmOutcome) -> ArmOutcome:
    """Return the outcome, without its times if they are impossible."""
    seconds = completion_s(outcome)
    if seconds is None or SHORTEST_S <= seconds <= limits.LONGEST_S:
        return outcome
    return msgspec.structs.replace(outcome, completion_s=None, measurements=None)


def check_state(state: object) -> None:
    """Refuse a scheduler's state with impossible numbers.

    Args:
        state: state in JSON types.

    Raises:
        ValueError: a number is not finite or too large.
    """
    if isinstance(state, dict):
        for value in state.values():
            check_state(value)
    elif isinstance(state, list | tuple):
        for value in state:
            check_state(value)
    elif isinstance(state, int | float) and not abs(state) <= MOST:
        msg = f"it holds {state}"
        raise ValueError(msg)
