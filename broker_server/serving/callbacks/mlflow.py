"""``mlflow``: settings and curves of a run in MLflow, where ``MLFLOW_TRACKING_URI`` says."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any, Final

from broker_server.errors import MissingExtraError
from broker_server.serving.callbacks.base import Callback, RunInfo
from broker_server.serving.callbacks.metrics import final_metrics, round_metrics
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import Axes

EXPERIMENT: Final = "fedspine"
"""Experiment of the runs, where ``MLFLOW_EXPERIMENT_NAME`` names no other."""
BATCH: Final = 1000
"""Metrics that MLflow takes at a time."""
RUN_TAG: Final = "fedspine.run_id"
"""Tag by which a run that goes on finds its run in MLflow."""


class MlflowCallback(Callback):
    """Logs settings as parameters and :func:`.metrics.round_metrics` as metrics; the step is the round."""

    def __init__(self) -> None:
        """Import MLflow. Its usage reports to its makers are off unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise.

        Raises:
            MissingExtraError: it is not installed.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow import MlflowClient, entities  # noqa: PLC0415 - an extra
        except ImportError as error:
            msg = f"callback mlflow needs the package {error.name!r}: pip install 'fedspine[mlflow]'"
            raise MissingExtraError(msg) from error
        self._make = MlflowClient
        self._entities = entities
        self._client: Any = None
        self._run_id = ""
        self._task: Task = "causal-lm"
        self._axes = Axes()
        self._is_finished = False

    def on_run_start(self, run: RunInfo) -> None:
        """Find the run in MLflow by its tag, or make it."""
        self._task, self._axes = run.task, run.axes
        client = self._make()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        earlier = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{run.run_id}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            made = client.create_run(experiment, tags={RUN_TAG: run.run_id}, run_name=run.run_id)
            self._run_id = made.info.run_id
            for key, value in run.settings.items():
                client.log_param(self._run_id, key, value)
        self._client = client

    def on_round_end(self, record: RoundRecord) -> None:
        """Log the figures of a round."""
        self._log(round_metrics(record, self._task, self._axes), record.round_number)

    def on_run_end(self, report: Report | None) -> None:
        """Log the last figures, at the step of the last round."""
        if report is not None:
            self._log(final_metrics(report), report.rounds[-1].round_number)
        self._is_finished = True

    def close(self) -> None:
        """Say how the run ended."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if self._is_finished else "KILLED")

    def _log(self, figures: dict[str, float], step: int) -> None:
        if self._client is None:  # on_run_start failed, and said so
            return
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        metrics = [self._entities.Metric(name, value, now_ms, step) for name, value in figures.items()]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + BATCH])
