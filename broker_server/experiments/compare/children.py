"""One run of a comparison as a process of its own: started or resumed, watched by its events, judged at its end."""

from __future__ import annotations

import time
from pathlib import Path

from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.layout import ComparisonDirectory, Progress
from broker_server.experiments.run.processes import server_command
from broker_server.experiments.run.settings import RunSettings
from broker_server.experiments.run.supervisor import Child, Supervisor
from broker_server.experiments.run.view import RunView
from broker_server.serving.storage.events import EventReader
from edge_runtime.system.files import write_atomically


class RunChild:
    """A ``fedspine run`` under way.

    Attributes:
        key: which run.
        view: how it stands, as of the last :meth:`poll`.
    """

    def __init__(self, key: RunKey, settings: RunSettings, child: Child, events_file: Path) -> None:
        self.key = key
        self.view = RunView(settings.task, settings.device_ids, settings.training.num_rounds, settings.axes)
        self._child = child
        self._events = EventReader(events_file)
        self._began_at = time.monotonic()

    @classmethod
    def start(
        cls, key: RunKey, settings: RunSettings, directory: ComparisonDirectory, supervisor: Supervisor
    ) -> RunChild:
        """Start a run that is new, or go on with one that was interrupted.

        Raises:
            RunExistsError: see :meth:`ComparisonDirectory.progress`.
            DiskFullError: there is no space.
        """
        run = directory.run(key)
        if directory.progress(key, settings) is Progress.STARTED:
            arguments = ["--resume"]
        else:
            settings_file = directory.runs / key.method / f"seed-{key.seed}.toml"
            settings_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(settings_file, settings.to_toml().encode())
            arguments = ["--config", str(settings_file)]
        command = server_command("run", *arguments, "--out", str(run.root))
        child = supervisor.start(f"{key.method}-seed-{key.seed}", command)
        return cls(key, settings, child, run.events_file)

    def poll(self) -> bool:
        """Read the new events; return whether the process is still running."""
        is_running = self._child.returncode is None  # first, so that the last events are not missed
        for event in self._events.new_events():
            self.view.apply(event)
        return is_running

    @property
    def seconds(self) -> float:
        """Wall time since the process was started."""
        return time.monotonic() - self._began_at

    def error(self) -> str | None:
        """Return the reason why an ended process failed, one line; None if it succeeded."""
        return None if self._child.returncode == 0 else f"{self._child.failure()} (log: {self._child.log})"
