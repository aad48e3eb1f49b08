"""A device that trains with onnxruntime-training takes part in a run like any other."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from broker_server.cli import call
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from edge_runtime.wire.arms import LORA_AXES
from tests.e2e.boards import make_run_dir, play, records_of, said

pytestmark = pytest.mark.e2e

PORTABLE = [sys.executable, "-m", "edge_runtime"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An artifact, and what a device of onnxruntime-training is started with: models of its arm 0.5:2."""

    artifact: Path
    device: tuple[list[str], list[str]]

    def run_dir(self, root: Path, arms: str, num_rounds: int) -> Path:
        training = TrainingConfig(num_rounds=num_rounds, num_local_steps=2, batch_size=4, max_length=16)
        pruning = PruningConfig(importance="lora")
        changes = {"training": training, "arms": LORA_AXES.parse(arms), "pruning": pruning}
        return make_run_dir(root / "my-run", self.artifact, **changes)


@pytest.fixture(scope="module")
def case(rows_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if "FEDSPINE_ORT_TRAINING_PYTHON" not in os.environ:
        pytest.skip("needs onnxruntime-training: scripts/test-ort-training makes its environment")
    models = tmp_path_factory.mktemp("ort-training") / "models"
    assert call(["export", str(rows_artifact), "--format", "ort-training", "--arm", "0.5:2", "-o", str(models)]) == 0
    command = [os.environ["FEDSPINE_ORT_TRAINING_PYTHON"], "-m", "edge_runtime"]
    options = ["--engine", "ort-training", "--ort-models", str(models)]
    return Case(artifact=rows_artifact, device=(command, options))


def test_it_is_given_the_arm_that_it_has_models_of(case: Case, tmp_path: Path) -> None:
    """Of two arms it has the cheaper one; it refuses the other, and sends importance as the others do."""
    run_dir = case.run_dir(tmp_path, "0.0:4,0.5:2", num_rounds=2)

    codes = play(run_dir, tmp_path, {"attic": (PORTABLE, ()), "cellar": case.device})

    assert codes == [0, 0, 0], said(tmp_path)
    assert "no ort-training models of 0.0:4" in said(tmp_path)["cellar"]
    for round_number in (1, 2):
        devices = records_of(run_dir, round_number)
        assert {name: device.outcome for name, device in devices.items()} == {"attic": "accepted", "cellar": "accepted"}
        assert (devices["cellar"].arm.pruning_ratio, devices["cellar"].arm.rank) == (0.5, 2)


def test_a_run_without_an_arm_that_it_has_goes_on_without_it_and_it_says_why(case: Case, tmp_path: Path) -> None:
    """Another run may play the arms that it has: it says what is missing, and stays."""
    run_dir = case.run_dir(tmp_path, "0.0:4", num_rounds=1)

    codes = play(run_dir, tmp_path, {"attic": (PORTABLE, ()), "cellar": case.device})

    assert codes == [0, 0, 0], said(tmp_path)
    assert "models of 0.5:2, but this run plays 0.0:4: export those" in said(tmp_path)["cellar"]
    outcomes = {name: device.outcome for name, device in records_of(run_dir, 1).items()}
    assert outcomes == {"attic": "accepted", "cellar": "failed"}
