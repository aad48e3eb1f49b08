"""The base class of callbacks: its methods do nothing until a subclass overrides them."""

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
    """The run that a callback is told of."""

    run_id: str
    directory: Path
    """Run directory; see docs/architecture.md."""
    task: Task
    settings: Mapping[str, str | int | float | bool]
    """Settings by name, as the report has them."""
    axes: Axes
    """Axes of its devices' arms."""


class Callback:
    """Base class of callbacks, called on events in the process of ``fedspine run`` or ``fedspine coordinate``.

    All methods are called in one thread of their own, in the order of the events, so they may take their time: the
    rounds do not wait. An exception becomes a line in the log, and the run goes on. Rounds that had ended before this
    process began are not told again.
    """

    def on_run_start(self, run: RunInfo) -> None:
        """This process begins, or goes on with, the rounds of a run."""

    def on_round_end(self, record: RoundRecord) -> None:
        """A round is over, and its record is on disk. Round 0 is the evaluation before training."""

    def on_run_end(self, report: Report | None) -> None:
        """The run is finished, and its report is written; None in ``fedspine coordinate``, which writes none."""

    def close(self) -> None:
        """The process is about to end, however the run went; nothing is called after this."""
