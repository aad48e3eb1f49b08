"""Plays all runs of a comparison: artifacts first, then as many runs at once as fit. A failed run stops no other."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from broker_server.errors import ChildFailedError
from broker_server.experiments.compare.children import RunChild
from broker_server.experiments.compare.config import Comparison, RunKey
from broker_server.experiments.compare.layout import ComparisonDirectory, Progress
from broker_server.experiments.compare.progress import ComparisonView, standing
from broker_server.experiments.compare.trace import Trace
from broker_server.experiments.run import preparation
from broker_server.experiments.run.display import Display
from broker_server.experiments.run.processes import export_command, num_cores
from broker_server.experiments.run.settings import RunSettings
from broker_server.experiments.run.supervisor import Child, Supervisor
from broker_server.serving.report.quality import duration_text
from edge_runtime.errors import FedSpineError
from edge_runtime.formats.names import MANIFEST_FILE

POLL_S: Final = 0.2
"""Pause between two looks."""

GRACE_S: Final = 20.0
"""Time that a run has to end its own processes."""

CORES_PER_RUN: Final = 2
"""A run's devices train side by side, and wait for the server in between."""

SERVER_MB: Final = 1024
DEVICE_MB: Final = 512
"""Memory that a run's server and each of its devices are counted with."""


def default_jobs(num_devices: int, *, is_emulated: bool) -> int:
    """Runs at a time: as many as cores and free memory allow; one if wall time is measured."""
    if not is_emulated:
        return 1
    free_mb: int = psutil.virtual_memory().available // 2**20
    return max(1, min(num_cores() // CORES_PER_RUN, free_mb // (SERVER_MB + num_devices * DEVICE_MB)))


@dataclasses.dataclass(slots=True, kw_only=True)
class Results:
    """The results of the runs so far."""

    finished: dict[RunKey, Trace] = dataclasses.field(default_factory=dict)
    failed: dict[RunKey, str] = dataclasses.field(default_factory=dict)


def check(comparison: Comparison, directory: ComparisonDirectory) -> None:
    """Refuse a comparison that is certain to fail before anything is written.

    Raises:
        FedSpineError: settings of a run that cannot work, or a directory with runs of other settings.
    """
    for key in comparison.run_keys:
        settings = comparison.settings(key)
        preparation.check_settings(settings)
        directory.progress(key, settings)


def load_finished(comparison: Comparison, directory: ComparisonDirectory) -> dict[RunKey, Trace]:
    """Runs that are finished already.

    Raises:
        ReportError: a report is damaged, or of another version.
        ManifestError: so is the manifest of its artifact.
    """
    return {
        key: directory.trace(key)
        for key in comparison.run_keys
        if directory.progress(key, comparison.settings(key)) is Progress.FINISHED
    }


def play(
    comparison: Comparison,
    directory: ComparisonDirectory,
    keys: Sequence[RunKey],
    jobs: int,
    display: Display[ComparisonView],
) -> Results:
    """Play the runs that are not finished yet.

    Args:
        comparison: all methods and seeds.
        directory: where runs lie.
        keys: those of the comparison that are wanted now.
        jobs: runs at a time.
        display: shows how it goes.

    Returns:
        Every finished run of the comparison, and the wanted ones that failed.

    Raises:
        FedSpineError: the model cannot be exported, or a finished run's report is damaged.
    """
    results = Results(finished=load_finished(comparison, directory))
    waiting = deque(key for key in keys if key not in results.finished)
    kept = len(keys) - len(waiting)
    display.step(f"{len(keys)} runs, {kept} of them finished before; {jobs} at a time")
    with Supervisor(directory.logs, grace_s=GRACE_S) as supervisor:
        pool = _Pool(comparison, directory, supervisor, display, results)
        while waiting or pool.running:
            while waiting and len(pool.running) < pool.room(jobs):
                pool.start(waiting.popleft())
            pool.poll()
            num_done = len(keys) - len(waiting) - len(pool.running)
            display.refresh(ComparisonView(running=pool.running, num_done=num_done, num_runs=len(keys)))
            time.sleep(POLL_S)
    return results


class _Pool:
    """Runs under way."""

    def __init__(
        self,
        comparison: Comparison,
        directory: ComparisonDirectory,
        supervisor: Supervisor,
        display: Display[ComparisonView],
        results: Results,
    ) -> None:
        self.running: list[RunChild] = []
        self._comparison = comparison
        self._directory = directory
        self._supervisor = supervisor
        self._display = display
        self._results = results
        self._is_emulated = any(comparison.settings(key).is_emulated for key in comparison.run_keys)

    def room(self, jobs: int) -> int:
        """Runs that may be under way: one until step times are measured, for which the machine must be quiet."""
        return 1 if self._is_emulated and not self._directory.calibration.exists() else jobs

    def start(self, key: RunKey) -> None:
        """Start or resume a run; an error makes it a failed run."""
        artifact = self._artifact(key)
        settings = self._comparison.settings(key, artifact=artifact, calibration=self._directory.calibration)
        try:
            self.running.append(RunChild.start(key, settings, self._directory, self._supervisor))
        except FedSpineError as error:
            self._fail(key, str(error))

    def poll(self) -> None:
        """Read the new events, and the results of runs that ended."""
        ended = [child for child in self.running if not child.poll()]
        self.running = [child for child in self.running if child not in ended]
        for child in ended:
            error = child.error()
            if error is not None:
                self._fail(child.key, error)
                continue
            try:
                self._results.finished[child.key] = self._directory.trace(child.key)
            except (FedSpineError, OSError) as unreadable:
                self._fail(child.key, str(unreadable))
                continue
            self._directory.tidy(child.key)
            self._display.step(f"{standing(child)}: done in {duration_text(child.seconds)}")

    def _fail(self, key: RunKey, error: str) -> None:
        self._results.failed[key] = error
        self._display.step(f"{key}: failed: {error}")

    def _artifact(self, key: RunKey) -> Path:
        """The artifact of the runs with this seed, exported where there is none yet."""
        artifact = self._directory.artifact(key.seed)
        if not (artifact / MANIFEST_FILE).exists():
            settings = self._comparison.settings(key)
            self._display.step(f"exporting {preparation.model_name(settings)} for seed {key.seed}")
            artifact.parent.mkdir(parents=True, exist_ok=True)
            command = export_command(settings, preparation.model_source(settings.model), _labels(settings), artifact)
            self._export(self._supervisor.start(f"export-seed-{key.seed}", [*command, "--force"]))
        return artifact

    def _export(self, child: Child) -> None:
        """Wait for an export; without an artifact no run of its seed can begin."""
        try:
            self._supervisor.finish(child)
        except ChildFailedError as error:
            msg = f"{error} (log: {error.log})"
            raise ChildFailedError(msg, error.child_exit_code, error.log) from error


def _labels(settings: RunSettings) -> tuple[str, ...]:
    """Classes of the data, as a run of its own would find them."""
    return preparation.load(settings).labels if settings.task == "text-classification" else ()
