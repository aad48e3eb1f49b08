"""The base class of callbacks, with methods that do nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import Axes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The run of a callback."""

    run_id: str
    directory: Path
    """Run directory; see docs/architecture.md."""
    task: Task
    settings: Mapping[str, str | int | float | bool]
    """Settings by name, the same as in the report."""
    axes: Axes
    """Axes of the arms."""


class Callback:
    """Base class of callbacks, called on events in the process of ``fedspine run`` or ``fedspine coordinate``.

    All methods are called in one separate thread, in the order of the events. They may be slow, because rounds do not
    wait for them. An exception is logged, and the run goes on. Rounds that ended before this process started are not
    reported again.
    """

    def on_run_start(self, run: RunInfo) -> None:
        """Handle the start of this process, which begins or continues a run."""

    def on_round_end(self, record: RoundRecord) -> None:
        """Handle the end of a round, whose record is on disk. Round 0 is the evaluation before training."""

    def on_run_end(self, report: Report | None) -> None:
        """Handle the end of the run; the report is written. None in ``fedspine coordinate``, which writes no report."""

    def close(self) -> None:
        """Handle the end of the process, after any end of the run; no method is called after this."""
