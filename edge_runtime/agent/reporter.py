"""Status messages: every change of state at once, progress about once a second, a heartbeat when idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_runtime.agent.assignment_runner import Progress
from edge_runtime.bounds.plain import plain
from edge_runtime.wire.messages import HEARTBEAT_S, AssignmentKey, DeviceState, Status

PROGRESS_S: Final = 1.0
"""Shortest time between two reports of progress, seconds."""

MAX_DETAIL: Final = 500
"""Longest detail, characters."""


class Reporter:
    """Publishes :class:`Status`.

    Args:
        device_id: this device.
        session_id: this process.
        publish: publishes a message to the coordinator.
        clock: monotonic seconds.
    """

    def __init__(
        self, device_id: str, session_id: str, publish: Callable[[Status], None], clock: Callable[[], float]
    ) -> None:
        self.heartbeat_s = HEARTBEAT_S
        self.progress = Progress()
        self.state = DeviceState.IDLE
        self._device_id = device_id
        self._session_id = session_id
        self._publish = publish
        self._clock = clock
        self._key: AssignmentKey | None = None
        self._said: tuple[int, str] = (0, "")
        self._said_at = float("-inf")

    def change(
        self, state: DeviceState, key: AssignmentKey | None = None, *, detail: str = "", num_steps: int = 0
    ) -> None:
        """Enter a state, on an assignment or none; the old state's progress is forgotten."""
        self.state = state
        self._key = key
        self.progress = Progress(detail=detail, num_steps=num_steps)
        self.say()

    def say(self, remark: str = "") -> None:
        """Publish the current state, this time with a remark in place of the detail if one is given."""
        progress = self.progress
        self._said = (progress.step, progress.detail)
        self._said_at = self._clock()
        self._publish(
            Status(
                device_id=self._device_id,
                session_id=self._session_id,
                state=self.state,
                round_number=0 if self._key is None else self._key.round_number,
                attempt=0 if self._key is None else self._key.attempt,
                step=progress.step,
                num_steps=progress.num_steps,
                loss=progress.loss,
                detail=plain(remark or progress.detail)[:MAX_DETAIL],
            )
        )

    def tick(self) -> None:
        """Publish progress or a heartbeat if it is time; call it often."""
        silent_s = self._clock() - self._said_at
        moved = (self.progress.step, self.progress.detail) != self._said
        if (moved and silent_s >= PROGRESS_S) or silent_s >= self.heartbeat_s:
            self.say()
