"""The directory of a comparison: the place and progress of its runs, and the files of a finished one that are kept."""

from __future__ import annotations

import enum
import shutil
from pathlib import Path
from typing import Final

from broker_server.errors import RunExistsError
from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.trace import Trace, trace_of
from broker_server.experiments.run.layout import RunDirectory
from broker_server.experiments.run.resolve import kept_settings
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import flat
from broker_server.serving.report.schema import Report, decode_report
from broker_server.serving.storage.store import UPDATES_FOLDER
from edge_runtime.formats.manifest import decode_manifest
from edge_runtime.formats.names import MANIFEST_FILE

RUNS: Final = "runs"
NO_MATTER: Final = frozenset({"artifact", "calibration", "method", "callbacks"})
"""Settings that do not affect results: paths of the comparison, and names whose meaning other settings give in full."""


class Progress(enum.Enum):
    """The progress of a run."""

    NEW = "new"
    STARTED = "started"
    FINISHED = "finished"


class ComparisonDirectory:
    """Paths of a comparison."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / RUNS
        self.logs = root / "logs"
        self.artifacts = root / "artifacts"
        self.calibration = root / "calibration.json"
        self.summary_json = root / "summary.json"
        self.page = root / "comparison.html"
        self.tables = root / "comparison.md"

    def run(self, key: RunKey) -> RunDirectory:
        """Directory of one run."""
        return RunDirectory(self.runs / key.method / f"seed-{key.seed}")

    def artifact(self, seed: int) -> Path:
        """Artifact of the runs with a seed: a new classifier's first weights depend on it."""
        return self.artifacts / f"seed-{seed}"

    def progress(self, key: RunKey, wanted: RunSettings) -> Progress:
        """Return the progress of a run.

        Raises:
            RunExistsError: it was made with other settings, or its directory holds something else.
            ConfigError: its settings are damaged.
        """
        directory = self.run(key)
        if not directory.job_file.exists():
            if directory.root.exists() and (not directory.root.is_dir() or any(directory.root.iterdir())):
                msg = f"{directory.root} is not an empty directory and not a run: remove it, or give another --out"
                raise RunExistsError(msg)
            return Progress.NEW
        made = flat(kept_settings(directory.settings_file))
        for name, value in flat(wanted).items():
            before = made.get(name)
            if name not in NO_MATTER and before != value:
                msg = (
                    f"{directory.root} was run with {name} = {before!r}, but the comparison now says {value!r}: "
                    "give another --out, or remove that directory to run it again"
                )
                raise RunExistsError(msg)
        return Progress.FINISHED if directory.report_json.exists() else Progress.STARTED

    def report(self, key: RunKey) -> Report:
        """The report of a finished run.

        Raises:
            ReportError: it is damaged, or of another version.
            OSError: it cannot be read.
        """
        return decode_report(self.run(key).report_json.read_bytes())

    def trace(self, key: RunKey) -> Trace:
        """Return the trace of a finished run.

        Raises:
            ReportError: its report is damaged, or of another version.
            ManifestError: the manifest of its artifact is damaged.
            OSError: one of them cannot be read.
        """
        report = self.report(key)
        manifest = decode_manifest((self.run(key).artifacts / report.artifact_digest / MANIFEST_FILE).read_bytes())
        return trace_of(report, sum(ref.size_bytes for ref in manifest.files.values() if ref.on_device))

    def tidy(self, key: RunKey) -> None:
        """Remove the files that a finished run no longer needs: the devices' copies of the artifact, and updates."""
        directory = self.run(key)
        shutil.rmtree(directory.devices, ignore_errors=True)
        shutil.rmtree(directory.root / UPDATES_FOLDER, ignore_errors=True)
