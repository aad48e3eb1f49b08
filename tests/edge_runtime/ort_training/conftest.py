"""Models that onnxruntime-training made, once for all tests; and how to run where it is installed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.engine.artifact import Artifact
from edge_runtime.ort_training.description import OptimizerSettings
from edge_runtime.wire.work import Arm
from tests.edge_runtime.ort_training.trajectories import HYPER_PARAMETERS

ROOT = Path(__file__).resolve().parents[3]
ARMS = (Arm(pruning_ratio=0.0, rank=4), Arm(pruning_ratio=0.5, rank=3))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An artifact, and its models."""

    artifact: Path
    models: Path


RunThere = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs ``python -m MODULE ARGUMENTS`` in the environment of onnxruntime-training."""


@pytest.fixture(scope="session")
def ort_python() -> Path:
    if "FEDSPINE_ORT_TRAINING_PYTHON" not in os.environ:
        pytest.skip("needs onnxruntime-training: scripts/test-ort-training makes its environment")
    return Path(os.environ["FEDSPINE_ORT_TRAINING_PYTHON"])


@pytest.fixture(scope="session")
def run_there(ort_python: Path) -> RunThere:
    def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(ort_python), "-m", module, *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)

    return run


def export(artifact: Path, out: Path, python: Path) -> Exported:
    from exporter.ort_training.export import export_ort_training

    baked = OptimizerSettings.of(HYPER_PARAMETERS)
    export_ort_training(artifact, out, ARMS, optimizer=baked, python=python)
    return Exported(artifact=artifact, models=out)


@pytest.fixture(scope="session")
def bert(tiny_bert_artifact: Path, ort_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny BERT with a classifier."""
    return export(tiny_bert_artifact, tmp_path_factory.mktemp("ort") / "bert", ort_python)


@pytest.fixture(scope="session")
def llama(ort_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The pretrained Llama that comes with the package."""
    from exporter.artifact.export import export_model

    folder = tmp_path_factory.mktemp("ort")
    export_model(ROOT / "models" / "pretrained" / "tiny-llama", "causal-lm", folder / "artifact")
    return export(folder / "artifact", folder / "llama", ort_python)


@pytest.fixture(params=["bert", "llama"])
def exported(request: pytest.FixtureRequest) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def artifact(exported: Exported) -> Artifact:
    return Artifact.open(exported.artifact)
