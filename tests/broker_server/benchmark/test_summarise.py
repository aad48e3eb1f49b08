"""Medians, ratios, the limit, and whether all did the same work."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_server.benchmark.contenders import contenders_of
from broker_server.benchmark.play import Sample
from broker_server.benchmark.schema import BenchReport, decode_bench
from broker_server.benchmark.settings import BenchSettings
from broker_server.benchmark.summarise import summarise
from broker_server.benchmark.table import differing, render
from broker_server.errors import ReportError
from broker_server.serving.report.encoding import encode
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.work import Arm
from tests.broker_server.benchmark.samples import LARGE, PRODUCTS, SETTINGS, SMALL, sample, samples, settings
from tests.broker_server.malformed import MALFORMED_REPORTS

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def artifact(tiny_llama_artifact: Path) -> Artifact:
    return Artifact.open(tiny_llama_artifact)


def report_of(artifact: Artifact, given: BenchSettings = SETTINGS, **changed: list[Sample]) -> BenchReport:
    measured = samples(given, **changed)
    manifest, contenders = artifact.manifest, contenders_of(given)
    return summarise(given, manifest, contenders, PRODUCTS, measured, now=1.8e9, loads=(0.1, 2.0))


def test_a_figure_is_the_median_over_runs_of_medians_over_steps(artifact: Artifact) -> None:
    fused = report_of(artifact).engines["fused"]
    assert fused.step_s_p50 == pytest.approx(0.1)  # the step of 50 s is not a run's median
    assert (fused.step_s_spread.least, fused.step_s_spread.most) == pytest.approx((0.09, 0.12))
    assert fused.tokens_per_s == pytest.approx(2 * 10 / 0.1)
    assert fused.cold_start_s == pytest.approx(1.5)
    assert (fused.cold_start_spread.least, fused.cold_start_spread.most) == pytest.approx((1.35, 1.8))
    assert fused.loss_after_50 == pytest.approx(0.5)


def test_ratios_are_to_fused(artifact: Artifact) -> None:
    engines = report_of(artifact).engines
    assert msgspec.structs.astuple(engines["fused"].to_fused) == pytest.approx((1, 1, 1, 1))
    assert msgspec.structs.astuple(engines["torch"].to_fused) == pytest.approx((2, 0.5, 2, 2))


def test_the_limit_is_all_products_at_the_best_rate(artifact: Artifact) -> None:
    report = report_of(artifact)
    best = LARGE.flops / 1e-3  # 2 GFLOP/s; the small one reaches 1
    assert report.limit.step_flops == 3 * SMALL.flops + LARGE.flops
    assert report.limit.best_flops_per_s == pytest.approx(best)
    assert report.limit.step_s == pytest.approx((3 * SMALL.flops + LARGE.flops) / best)
    assert report.limit_ratio == pytest.approx(report.limit.step_s / 0.1)
    median = SMALL.flops / 4e-6  # twice the large one's
    assert report.limit.p50_flops_per_s == pytest.approx(median)
    assert report.limit_ratio_p50 == pytest.approx((3 * SMALL.flops + LARGE.flops) / median / 0.1)
    assert report.limit.per_shape_step_s == pytest.approx(3 * 2e-6 + 1e-3)
    assert report.limit_ratio_per_shape == pytest.approx((3 * 2e-6 + 1e-3) / 0.1)
    assert [(rate.shape, rate.count) for rate in report.limit.shapes] == [
        ((1, 10, 10, 10), 3),
        ((2, 100, 100, 50), 1),
    ]


def test_engines_that_agree_do_the_same_work(artifact: Artifact) -> None:
    report = report_of(artifact, staged=[sample(0.2, 50, 1.0, loss=0.5005)] * 3)
    assert report.same_work
    assert report.engines["staged"].loss_gap == pytest.approx(0.0005)
    assert report.engines["staged"].same_work is True
    assert report.engines["fused"].same_work is None
    assert "NOT THE SAME WORK" not in render(report)


@pytest.mark.parametrize("wrong", [{"loss": 0.502}, {"num_trainable": 8}], ids=["another loss", "another adapter"])
def test_an_engine_that_differs_is_called_out(artifact: Artifact, wrong: dict[str, Any]) -> None:
    report = report_of(artifact, torch=[sample(0.2, 50, 1.0, **wrong)] * 3)
    assert not report.same_work
    assert report.engines["torch"].same_work is False
    assert report.engines["staged"].same_work is True
    (line,) = differing(report)
    assert line.startswith("torch does not do the same work as fused")
    assert f"NOT THE SAME WORK: {line}" in render(report)


def test_losses_that_differ_only_on_the_way_are_called_out_too(artifact: Artifact) -> None:
    first = sample(0.2, 50, 1.0)
    losses = list(first.result.losses)
    losses[20] += 0.01
    strayed = Sample(result=msgspec.structs.replace(first.result, losses=tuple(losses)), cold_start_s=1.0)
    report = report_of(artifact, torch=[strayed] * 3)
    assert report.engines["torch"].loss_gap == pytest.approx(0.01)
    assert not report.same_work


def test_a_peer_at_another_arm_is_compared_with_the_whole_model(artifact: Artifact) -> None:
    half = settings(arm=Arm(pruning_ratio=0.5, rank=8))
    changed = {"fused": [sample(0.05, 60, 1.0, loss=0.9)] * 3, "staged": [sample(0.05, 60, 1.0, loss=0.9)] * 3}
    report = report_of(artifact, half, **changed)
    assert report.same_work
    assert [engine.arm for engine in report.engines.values()] == ["0.5:8", "0.5:8", "0.0:8", "0.0:8", "0.0:8"]
    assert report.engines["torch"].to_fused.step_s_p50 == pytest.approx(4)


def test_a_peer_with_other_weights_is_not_judged(artifact: Artifact) -> None:
    report = report_of(artifact, settings(base="nf4"), torch=[sample(0.2, 50, 1.0, loss=0.7)] * 3)
    assert report.same_work
    assert report.engines["torch"].loss_gap is None
    assert "torch trains other frozen weights (float32) than ours" in render(report)
    assert "fused trains other" not in render(report)


def test_the_table_has_a_row_for_every_engine_and_what_must_be_known(artifact: Artifact) -> None:
    text = render(report_of(artifact))
    rows = [line.split()[0] for line in text.splitlines()[3:6]]
    assert rows == ["fused", "staged", "torch"]
    assert "0.2000 (2.00)" in text
    assert "limit_ratio 0.010" in text
    assert "Fewer than 5 runs" in text
    assert "load 0.1 before, 2.0 after" in text
    assert "Fewer than 5 runs" not in render(report_of(artifact, settings(runs=5)))


def test_the_file_survives_the_round_trip_and_names_no_path(artifact: Artifact) -> None:
    report = report_of(artifact)
    data = encode(report)
    assert decode_bench(data) == report
    assert "somewhere" not in data.decode()
    assert json.loads(data)["date"] == "2027-01-15"
    assert all(math.isfinite(float(figure)) for figure in re.findall(r": (-?[\d.e+-]+)[,\n]", data.decode()))


@pytest.mark.parametrize("data", MALFORMED_REPORTS, ids=range(len(MALFORMED_REPORTS)))
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ReportError, match="benchmark report is malformed, or of another version than 1"):
        decode_bench(data)


def test_every_field_is_explained() -> None:
    text = (DOCS / "engine.md").read_text(encoding="utf-8")
    definitions = msgspec.json.schema(BenchReport)["$defs"].values()
    fields = {name for part in definitions for name in part["properties"]} - {"engines", "limit"}
    assert not {name for name in fields if f"`{name}`" not in text and f"`limit.{name}`" not in text}
