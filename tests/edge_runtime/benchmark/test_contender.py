"""This engine in a benchmark, as a process and by its parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_runtime.benchmark.portable_contender import prepare
from edge_runtime.benchmark.protocol import BenchmarkResult
from edge_runtime.engine.errors import EngineError
from edge_runtime.engine.model import MODES
from edge_runtime.errors import ExitCode
from tests.edge_runtime.benchmark.requests import request_for

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("pruning_ratio", [0.0, 0.5])
@pytest.mark.parametrize("artifact", ["tiny_bert_artifact", "tiny_llama_artifact"])
def test_both_modes_do_the_same_work_and_learn(
    artifact: str, pruning_ratio: float, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(artifact)
    found = {}
    for mode in MODES:
        contender = prepare(request_for(directory, engine=mode, pruning_ratio=pruning_ratio))
        found[mode] = [contender.step() for _ in range(24)]
    assert found["staged"] == pytest.approx(found["fused"], abs=1e-5)
    assert sum(found["fused"][-4:]) < sum(found["fused"][:4])


def test_a_smaller_arm_trains_fewer_elements(tiny_bert_artifact: Path) -> None:
    whole = prepare(request_for(tiny_bert_artifact))
    half = prepare(request_for(tiny_bert_artifact, pruning_ratio=0.5))
    assert 0 < half.num_trainable < whole.num_trainable


def test_a_mode_that_there_is_not_is_refused(tiny_bert_artifact: Path) -> None:
    with pytest.raises(EngineError, match="engine 'torch' is not a mode of this one, expected one of fused, staged"):
        prepare(request_for(tiny_bert_artifact, engine="torch"))


def run(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime.benchmark.portable_contender", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_process_prints_its_result_last(tiny_llama_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(msgspec.json.encode(request_for(tiny_llama_artifact, engine="staged")))
    done = run(tmp_path / "request")
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout.splitlines()[-1], type=BenchmarkResult)
    assert len(result.losses) == 6
    assert set(result.versions) == {"onnxruntime", "numpy"}


def test_the_process_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(msgspec.json.encode(request_for(tmp_path / "none")))
    done = run(tmp_path / "request")
    assert done.returncode == ExitCode.ARTIFACT_CORRUPTED
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedspine-contender: error: artifact ")
