"""The assignment that a device is on."""

from __future__ import annotations

import dataclasses

from edge_runtime.agent.outbox import Key
from edge_runtime.wire.messages import Assignment


@dataclasses.dataclass(slots=True)
class Work:
    """One assignment, from when it came until it is done, given up or dropped. Instants are monotonic seconds."""

    assignment: Assignment
    received_at: float
    deadline_at: float
    adapter: tuple[bytes, float] | None = None
    """Safetensors bytes to start from, and how long they took to arrive, seconds; None until they are here."""
    is_running: bool = False

    @property
    def key(self) -> Key:
        """What makes it effectively once."""
        return (self.assignment.run_id, self.assignment.round_number, self.assignment.attempt)
