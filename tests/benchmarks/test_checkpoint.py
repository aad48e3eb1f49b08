"""The script that times checkpoints says what a figure needs beside it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.script import run_script


def test_a_checkpoint_is_timed_beside_a_step(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    options = ["--rank", "4", "--steps", "3", "--batch-size", "2", "--length", "8", "--folder", str(tmp_path)]
    done = run_script("checkpoint", tiny_bert_artifact, *options)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 12 * result["num_trainable"] < result["checkpoint_bytes"] < 12 * result["num_trainable"] + 4096
    for what in ("step_wall_s", "checkpoint_wall_s", "resume_wall_s"):
        assert 0 < result[what]["min"] <= result[what]["median"] <= result[what]["max"]
    assert {"date", "command", "onnxruntime", "cores", "load"} <= set(result["environment"])
    assert str(tmp_path) not in done.stdout
    assert list(tmp_path.iterdir()) == []
