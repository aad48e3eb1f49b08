"""The script that measures fleets that mix: devices do what their memory allows, each on its half of the classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import mixed

ROWS = [
    {"text": f"the {label} {animal} {verb}", "label": label}
    for label in ("red", "green", "blue")
    for animal in ("cat", "dog", "bird")
    for verb in ("runs", "sings", "sleeps", "falls")
]


@pytest.mark.parametrize(
    ("case", "work"),
    [
        ("strong", {"strong-1": "lora", "strong-2": "lora"}),
        ("mixed", dict.fromkeys(mixed.STRONG, "lora") | dict.fromkeys(mixed.WEAK, "zero_order")),
        ("first_order", dict.fromkeys((*mixed.STRONG, *mixed.WEAK), "lora")),
    ],
)
def test_a_case_is_played_to_its_end(tiny_bert_artifact: Path, tmp_path: Path, case: str, work: dict[str, str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sizes = ["--examples", "6", "--eval-examples", "8", "--batch-size", "2", "--max-length", "8"]
    given = [str(tiny_bert_artifact), "--train", str(data), "--test", str(data), "--rounds", "2", "--steps", "2"]
    result = mixed.play(case, 0, mixed.parser().parse_args([*given, *sizes]), tmp_path)

    assert result["work"] == work
    assert [entry["round"] for entry in result["rounds"]] == [1, 2]
    assert all(len(entry[name]) == 2 for entry in result["rounds"] for name in ("accuracy", "loss"))
    labels = {
        name: {json.loads(line)["label"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()}
        for name in (*mixed.STRONG, *mixed.WEAK, "first half", "other half")
    }
    weak_only = {"green", "blue"}
    assert labels["strong-1"] | labels["strong-2"] == labels["first half"] == {"red"}
    assert labels["weak-1"] | labels["weak-2"] == labels["other half"] == weak_only
