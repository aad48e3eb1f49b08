"""The script that says where a step's time goes names every operator once, and rates its products."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.operators import medians
from tests.benchmarks.script import run_script


def test_operators_of_a_step_are_timed(tiny_bert_artifact: Path) -> None:
    options = ["--steps", "2", "--batch-size", "4", "--length", "16", "--matmul-seconds", "0.01", "--min-share", "0"]
    done = run_script("operators", tiny_bert_artifact, *options)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    operators = {row["operator"]: row for row in result["operators"]}
    assert len(operators) == len(result["operators"])
    assert sum(row["share"] for row in operators.values()) == pytest.approx(1, abs=0.01)
    assert [row["s"] for row in result["operators"]] == sorted((row["s"] for row in operators.values()), reverse=True)
    assert 0 < result["operators_s"] < result["step_wall_s"]["max"]
    gemms = [row for row in result["products"] if row["operator"] == "Gemm"]
    assert gemms
    assert sum(row["count"] for row in gemms) <= operators["Gemm"]["count"]
    for row in gemms:
        assert row["gflops_per_s"] > 0
        for rate in row["matmul_gflops_per_s"].values():
            assert 0 < rate["median"] <= rate["max"]
    assert {4 * 16} <= {size for row in gemms for size in row["sizes"]}, "tokens of the batch are among the sizes"
    assert str(tiny_bert_artifact.parent) not in done.stdout
    assert "Gemm" in done.stderr


def test_steps_of_warm_up_do_not_count() -> None:
    """Three of them, then the median of the others; what is not a run of a node is passed over."""
    args = {"op_name": "Gemm", "node_index": "3", "input_type_shape": [{"float": [2, 6]}, {"float": [6, 5]}]}
    node = {"cat": "Node", "name": "product_kernel_time", "args": args | {"output_type_shape": [{"float": [2, 5]}]}}
    events = [node | {"dur": duration} for duration in (900, 800, 700, 10, 30, 20)]
    others = [{"cat": "Session", "name": "model_run", "dur": 9}, node | {"name": "product_fence_before", "dur": 7}]

    assert medians([*others, *events]) == [{"operator": "Gemm", "sizes": (2, 6, 5), "s": 20e-6}]
