"""The current assignment of a device: its payload and its deadline, until it is done, given up or dropped."""

from __future__ import annotations

import dataclasses
import functools
import logging

from edge_runtime.agent.coordinator_channel import COORDINATOR, CoordinatorChannel
from edge_runtime.agent.jobs import Jobs, Rebuilt
from edge_runtime.agent.refused import Refused
from edge_runtime.agent.reporter import Reporter
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire.messages import Assignment, AssignmentKey, BlobRef, DeviceState, FailureReason

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Work:
    """One assignment, from its arrival until it is done, given up or dropped. Instants are monotonic seconds."""

    assignment: Assignment
    received_at: float
    deadline_at: float
    payload: tuple[bytes, float] | None = None
    """Safetensors bytes to start from, and the seconds that they took to arrive; None before they arrive, and once the
    work has begun."""
    is_to_rebuild: bool = False
    """Whether to try to rebuild the payload from this device's files before a pull."""
    is_running: bool = False

    @property
    def key(self) -> AssignmentKey:
        """Return the assignment's key; an assignment counts once under its key."""
        return self.assignment.key


class CurrentWork:
    """The current work of a device.

    Args:
        channel: reports the result.
        transfers: pulls the payload.
        jobs: does the work in the background.
        reporter: reports the progress.
        refused: remembers refused assignments.

    Attributes:
        work: the assignment; None = there is none.
        pull_rate: rate of the last pulled payload, bytes a second; None = no payload was pulled.
    """

    def __init__(
        self, channel: CoordinatorChannel, transfers: Transfers, jobs: Jobs, reporter: Reporter, refused: Refused
    ) -> None:
        self.work: Work | None = None
        self.pull_rate: float | None = None
        self._channel = channel
        self._transfers = transfers
        self._jobs = jobs
        self._reporter = reporter
        self._refused = refused

    def begin(self, work: Work) -> None:
        """Get the payload that the work starts from, if any: rebuilt from this device's files, or pulled."""
        assignment = work.assignment
        logger.info("round %d, attempt %d: %s", work.key.round_number, work.key.attempt, assignment.work)
        self.work = work
        self._reporter.change(DeviceState.FETCHING, work.key)
        if assignment.payload is None:
            work.payload = (b"", 0.0)
        elif assignment.work.has_history:
            work.is_to_rebuild = True
        else:
            self._pull(work, assignment.payload)

    def rebuilt(self, work: Work, outcome: Rebuilt) -> None:
        """Take the rebuilt payload, or pull it."""
        work.is_running = work.is_to_rebuild = False
        if outcome.blob is not None:
            work.payload = (outcome.blob, self._channel.clock() - work.received_at)
        elif work.assignment.payload is not None:
            self._pull(work, work.assignment.payload)

    def check_deadline(self) -> None:
        """Give the work up if its time has passed; call it often."""
        work, now = self.work, self._channel.clock()
        if work is not None and now > work.deadline_at:
            detail = f"deadline passed, {now - work.received_at:.1f} s after the assignment came"
            self.drop(detail)
            self.refuse(work, FailureReason.CANCELLED, detail)

    def drop(self, why: str) -> None:
        """Stop the work, if any, and ignore later results of it."""
        if self.work is None:
            return
        logger.info("round %d, attempt %d: %s", self.work.key.round_number, self.work.key.attempt, why)
        self._stop_pulling(self.work)
        if self.work.is_running:
            self._jobs.stop()
        self.work = None

    def refuse(self, work: Work, reason: FailureReason, detail: str) -> None:
        """Give an assignment up, and send the reason to the coordinator."""
        logger.warning(
            "round %d, attempt %d given up: %s (%s)", work.key.round_number, work.key.attempt, detail, reason
        )
        if self.work is work:
            self._stop_pulling(work)
            self.work = None
        failure = self._channel.failure(work.assignment, reason, detail)
        self._refused.remember(work.key, failure)
        self._channel.say(failure)
        self._reporter.change(DeviceState.IDLE, detail=detail)

    def _pull(self, work: Work, payload: BlobRef) -> None:
        self._transfers.expect(
            payload,
            COORDINATOR,
            functools.partial(self._on_payload, work, self._channel.clock()),
            lambda detail: self.refuse(work, FailureReason.INTERNAL, detail),
        )

    def _on_payload(self, work: Work, began: float, blob: bytes) -> None:
        now = self._channel.clock()
        self.pull_rate = len(blob) / max(now - began, 1e-3)
        work.payload = (blob, now - work.received_at)

    def _stop_pulling(self, work: Work) -> None:
        if work.assignment.payload is not None:
            self._transfers.cancel(work.assignment.payload.digest, COORDINATOR)
