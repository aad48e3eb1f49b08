"""The script that times perturbations in three ways."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.script import run_script


def test_three_ways_are_timed(tiny_llama_artifact: Path) -> None:
    done = run_script("perturbations", tiny_llama_artifact, "--batch-size", "2", "--length", "8", "--runs", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(seconds > 0 for seconds in result["cpu_s"].values())
    assert result["of_in_turn"].keys() == {"rows", "block by block"}
    assert all(least <= median <= most for least, median, most in result["of_in_turn"].values())
