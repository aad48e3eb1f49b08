"""The script that tells what fewer bits cost trains each artifact, and tells figures before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.script import run_script


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_artifact_learns_and_the_same_one_learns_the_same(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact: Path = request.getfixturevalue(f"tiny_{family}_artifact")
    data = tmp_path / "data.jsonl"
    labels = {"cat": "red", "dog": "green"}
    lines = [{"text": f"the {animal} sat on the mat", "label": label} for animal, label in labels.items()] * 8
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--train", str(data), "--test", str(data), "--steps", "40", "--batch-size", "4", "--max-length", "16"]
    done = run_script("quality", artifact, artifact, *options, "--seeds", "3")

    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["runs"]
    assert first == second
    assert first["seed"] == 3
    assert first["after"]["loss"] < 0.7 * first["before"]["loss"]
    assert ("accuracy" if family == "bert" else "perplexity") in first["after"]
