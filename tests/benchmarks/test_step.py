"""The script that times steps says what a figure needs beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.script import run_script


def test_a_step_is_timed_for_every_arm(tiny_llama_artifact: Path) -> None:
    options = ["--arms", "0.0:4,0.5:2", "--steps", "3", "--batch-size", "2", "--length", "8"]
    done = run_script("step", tiny_llama_artifact, *options)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    full, pruned = result["arms"]
    assert (full["sparsity"], pruned["sparsity"]) == (0.0, pytest.approx(0.5, abs=0.1))
    assert full["num_trainable"] > pruned["num_trainable"] > 0
    for arm in (full, pruned):
        for what in ("step_wall_s", "step_cpu_s", "importance_wall_s", "importance_cpu_s"):
            assert 0 <= arm[what]["min"] <= arm[what]["median"] <= arm[what]["max"]
        assert arm["step_wall_s"]["min"] > 0
        assert arm["importance_wall_s"]["median"] > 0
        assert arm["peak_memory_mib"] > 0
    assert {"date", "command", "onnxruntime", "cores", "load"} <= set(result["environment"])
    assert str(tiny_llama_artifact.parent) not in done.stdout
