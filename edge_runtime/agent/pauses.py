"""Pauses of the work while the board is too hot, throttled or low on charge; they block the working thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import Final, Protocol

from edge_runtime.board.guard import Guard, PauseLimits
from edge_runtime.board.sensors import Sensors

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Time from one look at the sensors to the next, seconds."""


class Detail(Protocol):
    """The place where the reason of a pause is shown."""

    detail: str


class Pauses:
    """Looks at the sensors at a bounded rate and waits while the board should rest.

    Attributes:
        paused_s: seconds that were waited so far.

    Args:
        limits: reasons to pause.
        sensors: of the board.
        look_s: seconds from one look to the next.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: PauseLimits,
        sensors: Sensors,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.paused_s = 0.0
        self._is_watching = limits.is_any
        self._guard = Guard(limits)
        self._sensors = sensors
        self._look_s = look_s
        self._clock = clock
        self._look_at = float("-inf")

    def count(self) -> PausedTime:
        """Count an assignment's pauses from now on."""
        return PausedTime(self)

    def working_s(self) -> float:
        """Monotonic seconds of a clock that stands still during a pause."""
        return self._clock() - self.paused_s

    def wait(self, stop: Event, progress: Detail) -> None:
        """Wait until work may go on or should stop; return at once if nothing demands a pause. Call it often.

        Args:
            stop: set when the work should end.
            progress: its detail shows the reason during a pause.
        """
        if not self._is_watching or self._clock() < self._look_at:
            return
        started, detail, said = self._clock(), progress.detail, ""
        while (reason := self._look()) is not None:
            if reason != said:
                logger.warning("paused: %s", reason)
                progress.detail, said = f"paused: {reason}", reason
            if stop.wait(self._look_s):
                break
        if said:
            waited_s = self._clock() - started
            self.paused_s += waited_s
            progress.detail = detail
            logger.info("paused for %.0f s, %s", waited_s, "stopped" if stop.is_set() else "going on")

    def _look(self) -> str | None:
        now = self._clock()
        self._look_at = now + self._look_s
        return self._guard.judge(self._sensors.read(), now)


class PausedTime:
    """The seconds that one assignment was paused so far, by earlier processes too. Made by :meth:`Pauses.count`."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._begun_s = pauses.paused_s

    @property
    def seconds(self) -> float:
        """Seconds paused so far."""
        return self._pauses.paused_s - self._begun_s

    def add_earlier(self, paused_s: float) -> None:
        """Add the pauses of an earlier process, from which this one continues."""
        self._begun_s -= paused_s
