"""The script that watches memory over many steps tells growth from none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.soak import EVERY, slope_of
from tests.benchmarks.script import run_script


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fused", "staged"])
def test_ten_thousand_steps_do_not_grow(tiny_bert_artifact: Path, mode: str) -> None:
    done = run_script("soak", tiny_bert_artifact, "--mode", mode, "--batch-size", "2", "--length", "12")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["slope_mb_per_1000_steps"] < 1.0
    assert len(result["rss_mb"]) >= 20


def test_growth_above_the_limit_fails(tiny_bert_artifact: Path) -> None:
    done = run_script("soak", tiny_bert_artifact, "--steps", "300", "--batch-size", "1", "--limit=-1000")

    assert done.returncode == 1
    assert "memory grows by" in done.stderr
    assert json.loads(done.stdout)["setting"]["steps"] == 300


@pytest.mark.parametrize("growth_mb", [0.0, 0.5, -2.0])
def test_the_slope_is_that_of_the_line(growth_mb: float) -> None:
    readings = [(step, int(7e7 + growth_mb * 1e6 * step / 1000)) for step in range(EVERY, 10_001, EVERY)]
    readings[0] = (EVERY, 0)  # the first tenth does not count

    assert slope_of(readings) == pytest.approx(growth_mb, abs=1e-6)
