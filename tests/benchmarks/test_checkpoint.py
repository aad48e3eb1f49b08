"""The script that times checkpoints says what a figure needs beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_checkpoint_is_timed_beside_a_step(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    options = ["--rank", "4", "--steps", "3", "--batch-size", "2", "--length", "8", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.checkpoint", str(tiny_bert_artifact), *options],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 12 * result["num_trainable"] < result["checkpoint_bytes"] < 12 * result["num_trainable"] + 4096
    for what in ("step_wall_s", "checkpoint_wall_s", "resume_wall_s"):
        assert 0 < result[what]["min"] <= result[what]["median"] <= result[what]["max"]
    assert {"date", "command", "onnxruntime", "cores", "load"} <= set(result["environment"])
    assert str(tmp_path) not in done.stdout
    assert list(tmp_path.iterdir()) == []
