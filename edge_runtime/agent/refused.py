"""The refusals of a device: runs that its owner does not allow, runs without its method, and failed assignments."""

from __future__ import annotations

import logging
from typing import Final

from edge_runtime.agent.methods.installed import InstalledMethods
from edge_runtime.agent.pins import Pins
from edge_runtime.wire.messages import AssignmentKey, Failure, Welcome

logger = logging.getLogger(__name__)

MAX_REMEMBERED: Final = 64
"""Most failures that are kept, to answer a repeated assignment without new work."""


class Refused:
    """Remembers refusals, so that the same question gets the same answer.

    Args:
        pins: artifacts and hosts that the board's owner allows.
        methods: methods of other packages.
    """

    def __init__(self, pins: Pins, methods: InstalledMethods) -> None:
        self._pins = pins
        self._methods = methods
        self._run: tuple[str, str] | None = None
        self._failures: dict[AssignmentKey, Failure] = {}

    def judge(self, welcome: Welcome) -> str | None:
        """Return why this device may not take part in a run, one line, logged the first time; None if it may."""
        objection = self._pins.objection(
            welcome.run_id, welcome.artifact_digest, welcome.artifact_url
        ) or self._methods.objection(welcome)
        if objection is not None:
            if self._run != (welcome.run_id, objection):
                logger.warning("%s", objection)
            self._run = (welcome.run_id, objection)
        elif self.objection_to(welcome.run_id) is not None:
            self._run = None
        return objection

    def objection_to(self, run_id: str) -> str | None:
        """Return the objection to a run if it was the last refused run, else None."""
        return self._run[1] if self._run is not None and self._run[0] == run_id else None

    def remember(self, key: AssignmentKey, failure: Failure) -> None:
        """Keep the answer to an assignment; the oldest makes room."""
        while len(self._failures) >= MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = failure

    def answer_to(self, key: AssignmentKey) -> Failure | None:
        """The failure that was sent for an assignment; None if there was none."""
        return self._failures.get(key)
