"""``tensorboard``: curves of a run for TensorBoard, in the run directory's ``tensorboard/``."""

from __future__ import annotations

from typing import Any, Final

from broker_server.errors import MissingExtraError
from broker_server.serving.callbacks.base import Callback, RunInfo
from broker_server.serving.callbacks.metrics import final_metrics, round_metrics
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import Axes

FOLDER: Final = "tensorboard"


class TensorBoardCallback(Callback):
    """Writes :func:`.metrics.round_metrics` as scalars; the step is the round."""

    def __init__(self) -> None:
        """Import TensorBoard.

        Raises:
            MissingExtraError: it is not installed.
        """
        try:
            from tensorboard.summary import Writer  # noqa: PLC0415 - an extra
        except ImportError as error:
            msg = f"callback tensorboard needs the package {error.name!r}: pip install 'fedspine[tensorboard]'"
            raise MissingExtraError(msg) from error
        self._make = Writer
        self._writer: Any = None
        self._task: Task = "causal-lm"
        self._axes = Axes()
        self._step = 0

    def on_run_start(self, run: RunInfo) -> None:
        """Begin a file of events; a run that goes on begins another one beside it, which TensorBoard reads as one."""
        self._task, self._axes = run.task, run.axes
        self._writer = self._make(str(run.directory / FOLDER))

    def on_round_end(self, record: RoundRecord) -> None:
        """Write the figures of a round."""
        self._step = record.round_number
        self._write(round_metrics(record, self._task, self._axes))

    def on_run_end(self, report: Report | None) -> None:
        """Write the last figures, at the step of the last round."""
        if report is not None:
            self._step = report.rounds[-1].round_number
            self._write(final_metrics(report))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, figures: dict[str, float]) -> None:
        if self._writer is None:  # on_run_start failed, and said so
            return
        for name, value in figures.items():
            self._writer.add_scalar(name, value, self._step)
        self._writer.flush()
