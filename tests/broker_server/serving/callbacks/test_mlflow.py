"""A run in a real MLflow store, a sqlite file, read back by MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_server.serving.callbacks import CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.callbacks.mlflow import RUN_TAG
from broker_server.serving.storage.events import RoundFinished
from edge_runtime.wire.arms import LORA_AXES
from tests.broker_server.report_samples import round_records, sample_report

pytestmark = [
    pytest.mark.slow,  # MLflow makes its tables anew: some ten seconds
    pytest.mark.filterwarnings("default"),  # of libraries that we do not own
]


def test_a_run_and_its_second_session_are_one_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs fedspine[mlflow]")
    pytest.importorskip("alembic", reason="needs fedspine[mlflow]")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    settings: dict[str, str | int | float | bool] = {
        "rounds": 3,
        "method": "fedspine",
        "learning_rate": 3e-3,
        "eval_sparse": True,
    }
    run = RunInfo(run_id="run-1", directory=tmp_path, task="text-classification", settings=settings, axes=LORA_AXES)
    records, report, said = round_records(3), sample_report(), list[str]()
    statuses = []

    for part in (records[:2], records[2:]):
        with CallbackWorker(make_callbacks("mlflow"), said.append) as worker:
            worker.run_started(run)
            for record in part:
                worker.happened(RoundFinished(at=0.0, record=record))
            if part[-1] is records[-1]:
                worker.run_finished(report)
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name("fedspine").experiment_id
        (found,) = client.search_runs([experiment])
        statuses.append(found.info.status)

    assert said == []
    assert statuses == ["KILLED", "FINISHED"]
    assert found.data.tags[RUN_TAG] == "run-1"
    assert found.data.params == {name: str(value) for name, value in settings.items()}
    history = client.get_metric_history(found.info.run_id, "held_out/accuracy")
    assert sorted((metric.step, round(metric.value, 6)) for metric in history) == [
        (0, 0.25),
        (1, 0.45),
        (2, 0.65),
        (3, 0.85),
    ]
    assert found.data.metrics["final/loss"] == pytest.approx(report.final.loss)
