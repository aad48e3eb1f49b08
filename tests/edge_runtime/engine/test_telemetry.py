"""onnxruntime reports to nobody, whichever room loads it: no file of its reporter, and no thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib, os, sys
importlib.import_module(sys.argv[1])
import onnxruntime
tasks = len(os.listdir("/proc/self/task"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
print(os.environ["ORT_DISABLE_TELEMETRY"], len(os.listdir("/proc/self/task")) - tasks)
"""


@pytest.mark.parametrize("module", ["edge_runtime.engine.session", "edge_runtime.inference", "exporter.compact.graph"])
def test_nothing_is_gathered_for_its_maker(module: str, tiny_bert_artifact: Path, tmp_path: Path) -> None:
    """It is silent in CI by itself, so that is taken out of the environment."""
    env = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SCRIPT, module, str(tiny_bert_artifact / "optimizer.onnx")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0"]
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()]
