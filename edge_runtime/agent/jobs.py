"""Jobs of the background thread: prepare for a run, rebuild a payload, or work on an assignment."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from edge_runtime.agent.assignment_runner import AssignmentRunner, Progress, WorkContext, prepare
from edge_runtime.agent.cache import ArtifactCache
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.board.sensors import Sensors
from edge_runtime.engine.session import Interrupt
from edge_runtime.system.background import Background
from edge_runtime.wire.messages import Assignment, Update, Welcome


@dataclasses.dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of an attempt to rebuild a payload instead of pulling it."""

    blob: bytes | None
    """The payload; None = it must be pulled."""


Job = AssignmentRunner | Rebuilt | tuple[Update, bytes]
"""Result of a job: the runner of a run, the outcome of a rebuild, or an update and its blob."""


class Jobs(Background[Job]):
    """The jobs of one device.

    Args:
        artifacts: folder of the artifact cache.
        settings: the owner's settings.
        traffic: counts bytes over HTTP.
        checkpoints: keeps the training under way.
    """

    def __init__(self, artifacts: Path, settings: WorkSettings, traffic: Traffic, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._artifacts = artifacts
        self._settings = settings
        self._traffic = traffic
        self._checkpoints = checkpoints
        self._pauses = Pauses(settings.pausing, Sensors(settings.sensors))
        self._interrupt = Interrupt()

    def stop(self) -> None:
        """Ask the job to stop, and end the graph that it is running."""
        super().stop()
        self._interrupt.set()

    def prepare(self, welcome: Welcome, progress: Progress) -> None:
        """Start to prepare for a run; the job's tag is the coordinator's welcome."""

        def job(stop: threading.Event) -> AssignmentRunner:
            def count(num_bytes: int) -> None:
                self._traffic.add_http(num_bytes)
                _raise_if(stop.is_set)

            cache = ArtifactCache(self._artifacts, lambda delay_s: _raise_if(lambda: stop.wait(delay_s)))
            return prepare(welcome, cache, self._settings, progress, count)

        self.start(welcome, job)

    def rebuild(
        self,
        runner: AssignmentRunner,
        assignment: Assignment,
        pull_rate: float | None,
        welcome: Welcome,
        progress: Progress,
    ) -> None:
        """Start to rebuild a payload from this device's files; tag and arguments are those of :meth:`work`."""

        def job(stop: threading.Event) -> Rebuilt:
            return Rebuilt(runner.rebuild(assignment, self._context(welcome, stop, progress, 0.0, pull_rate)))

        self.start(assignment.key, job)

    def work(
        self,
        runner: AssignmentRunner,
        assignment: Assignment,
        payload: tuple[bytes, float],
        pull_rate: float | None,
        welcome: Welcome,
        progress: Progress,
    ) -> None:
        """Start to work on an assignment; the job's tag is its key.

        Args:
            runner: runner of the run.
            assignment: the assignment.
            payload: safetensors bytes to start from, and the seconds that they took to arrive.
            pull_rate: rate of the last pulled payload, bytes a second; None = no payload was pulled.
            welcome: the coordinator's message about the run.
            progress: receives the progress.
        """
        given, fetch_s = [payload[0]], payload[1]
        self._interrupt = interrupt = Interrupt()

        def job(stop: threading.Event) -> tuple[Update, bytes]:
            with interrupt:
                return runner.run(assignment, given.pop(), self._context(welcome, stop, progress, fetch_s, pull_rate))

        self.start(assignment.key, job)

    def _context(
        self, welcome: Welcome, stop: threading.Event, progress: Progress, fetch_s: float, pull_rate: float | None
    ) -> WorkContext:
        return WorkContext(
            welcome=welcome,
            stop=stop,
            progress=progress,
            traffic=self._traffic,
            fetch_s=fetch_s,
            pull_rate=pull_rate,
            checkpoints=self._checkpoints,
            pauses=self._pauses,
        )


def _raise_if(is_stopped: Callable[[], bool]) -> None:
    if is_stopped():
        msg = "stopped while getting ready"
        raise StoppedError(msg)
