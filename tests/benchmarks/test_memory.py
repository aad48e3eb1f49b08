"""The script that says where memory goes draws what it measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.benchmarks.script import run_script


def test_every_case_is_measured_and_drawn(tiny_bert_artifact: Path, tmp_path: Path) -> None:
    options = [str(tiny_bert_artifact), "--out", str(tmp_path / "out"), "--batch-size", "2", "--length", "8"]
    done = run_script("memory", *options)

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "memory.json").read_text())
    assert [(case["mode"], case["base"]) for case in result["cases"]] == [("fused", "float32"), ("staged", "float32")]
    for case in result["cases"]:
        assert case["estimate"]["weights"] > 0
        assert 30e6 < case["peak_rss_bytes"] < 1.5 * sum(case["estimate"].values())
    text = (tmp_path / "out" / "memory.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")  # noqa: S314 - written a moment ago
    assert text.count("MiB") >= 3
