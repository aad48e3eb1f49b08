"""The script that sets split tuning beside other methods plays each to its end, and counts what devices send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import split

LABELS = ("red", "green", "blue")
ROWS = [{"text": f"the {LABELS[i % 3]} cat sat {i}", "label": LABELS[i % 3]} for i in range(36)]


@pytest.mark.parametrize(
    ("run", "updates"),
    [("fedit", [2, 2]), ("probe", [2, 2]), ("split,cut=1", [2, 0]), ("split,cut=1,dtype=float32,noise=0.5", [2, 0])],
)
def test_a_run_is_played_to_its_end(tiny_bert_artifact: Path, tmp_path: Path, run: str, updates: list[int]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sizes = ["--examples", "24", "--eval-examples", "9", "--batch-size", "2", "--max-length", "8", "--devices", "2"]
    given = [str(tiny_bert_artifact), "--train", str(data), "--test", str(data), "--rounds", "2", "--steps", "2"]
    options = split.parser().parse_args([*given, *sizes, "--split", "iid", "--run", run])
    result = split.play(run, 0, options, tmp_path)

    assert result["updates"] == updates
    assert result["examples"] == 24
    assert 0 <= result["accuracy"] <= 1
    assert 0 < result["update_bytes"] < 10**6
