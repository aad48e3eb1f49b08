"""The script that sets zero-order tuning's memory beside that of evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.script import run_script


@pytest.mark.slow
def test_every_case_is_measured_in_a_process_of_its_own(tiny_bert_artifact: Path) -> None:
    done = run_script("zero_order_memory", tiny_bert_artifact, "--batch-size", "2", "--length", "8")
    assert done.returncode == 0, done.stderr
    head, *cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert "onnxruntime" in head["environment"]
    assert [case["case"] for case in cases] == ["evaluation", "zero-order", "staged", "fused"]
    assert cases[0]["of_evaluation"] == 1
    assert 0.95 < cases[1]["of_evaluation"] < 1.2
    assert all(case["peak_mib"] > 30 for case in cases)
