"""A device that trains with onnxruntime-training takes part in a run like any other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from broker_server.cli import call
from broker_server.config import TrainingConfig
from broker_server.pruning.config import PruningConfig
from edge_runtime.wire.arms import parse_arms
from tests.e2e.boards import export_artifact, make_run_dir, play, records_of, said

pytestmark = pytest.mark.e2e

PORTABLE = [sys.executable, "-m", "edge_runtime"]


@pytest.fixture
def ort_python() -> str:
    if "FEDSPINE_ORT_TRAINING_PYTHON" not in os.environ:
        pytest.skip("needs onnxruntime-training: scripts/test-ort-training makes its environment")
    return os.environ["FEDSPINE_ORT_TRAINING_PYTHON"]


def test_it_is_given_the_arm_that_it_has_models_of(ort_python: str, tiny_bert_model: Path, tmp_path: Path) -> None:
    """Of two arms it has the cheaper one; it refuses the other, and sends importance as the others do."""
    artifact, models = tmp_path / "artifact", tmp_path / "models"
    digest = export_artifact(tiny_bert_model, artifact)
    assert call(["export", str(artifact), "--format", "ort-training", "--arm", "0.5:2", "-o", str(models)]) == 0
    training = TrainingConfig(num_rounds=2, num_local_steps=2, batch_size=4, max_length=16)
    changes = {"training": training, "arms": parse_arms("0.0:4,0.5:2"), "pruning": PruningConfig(importance="lora")}
    run_dir = make_run_dir(tmp_path / "my-run", artifact, digest, **changes)

    ort = ([ort_python, "-m", "edge_runtime"], ("--engine", "ort-training", "--ort-models", str(models)))
    codes = play(run_dir, tmp_path, {"attic": (PORTABLE, ()), "cellar": ort})

    assert codes == [0, 0, 0], said(tmp_path)
    assert "no ort-training models of 0.0:4" in said(tmp_path)["cellar"]
    for round_number in (1, 2):
        devices = records_of(run_dir, round_number)
        assert {name: device.outcome for name, device in devices.items()} == {"attic": "accepted", "cellar": "accepted"}
        assert (devices["cellar"].pruning_ratio, devices["cellar"].rank) == (0.5, 2)


def test_a_run_without_an_arm_that_it_has_ends_it_with_one_line(
    ort_python: str, tiny_bert_model: Path, tmp_path: Path
) -> None:
    artifact, models = tmp_path / "artifact", tmp_path / "models"
    digest = export_artifact(tiny_bert_model, artifact)
    assert call(["export", str(artifact), "--format", "ort-training", "--arm", "0.5:2", "-o", str(models)]) == 0
    training = TrainingConfig(num_rounds=1, num_local_steps=2, batch_size=4, max_length=16)
    run_dir = make_run_dir(
        tmp_path / "my-run", artifact, digest, training=training, arms=parse_arms("0.0:4"), num_devices=2
    )

    ort = ([ort_python, "-m", "edge_runtime"], ("--engine", "ort-training", "--ort-models", str(models)))
    codes = play(run_dir, tmp_path, {"attic": (PORTABLE, ()), "cellar": ort})

    assert codes[-1] == 21, said(tmp_path)
    [line] = [line for line in said(tmp_path)["cellar"].splitlines() if line.startswith("fedspine-edge: error: ")]
    assert "models of 0.5:2, this run plays 0.0:4" in line
