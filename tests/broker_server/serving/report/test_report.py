"""``report.json`` and ``report.html``."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broker_server.errors import ReportError, RunFailedError
from broker_server.experiments.run.finishing import arm_lines, summary_lines
from broker_server.serving.report.build import RunSummary, build_report, quality_fields
from broker_server.serving.report.charts import all_charts, quality_over_rounds, quality_over_time
from broker_server.serving.report.encoding import encode
from broker_server.serving.report.page import render_page
from broker_server.serving.report.quality import bytes_text, duration_text, metric_name, perplexity
from broker_server.serving.report.schema import (
    FleetClass,
    FleetDrift,
    FleetEntry,
    Report,
    decode_report,
)
from broker_server.serving.storage.records import EvaluationRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.measures import Measurements
from tests.broker_server.malformed import MALFORMED_REPORTS
from tests.broker_server.report_samples import round_records, sample_report, sampled_records

DOCS = Path(__file__).resolve().parents[4] / "docs"
TASKS: list[Task] = ["causal-lm", "text-classification"]


@pytest.mark.parametrize("task", TASKS)
def test_a_report_survives_its_file(task: Task) -> None:
    report = sample_report(task)

    assert decode_report(encode(report)) == report


@pytest.mark.parametrize(
    ("task", "there", "absent"),
    [("causal-lm", "perplexity", "accuracy"), ("text-classification", "accuracy", "perplexity")],
)
def test_a_report_has_the_figure_of_its_task_and_not_the_other(task: Task, there: str, absent: str) -> None:
    data = json.loads(encode(sample_report(task)))

    for part in (data["final"], data["compact"], *data["rounds"]):
        assert there in part
        assert absent not in part


def test_a_report_has_every_field_that_was_promised() -> None:
    data = json.loads(encode(sample_report("text-classification")))

    assert {"accuracy", "seconds", "bytes_up", "bytes_down"} <= set(data["final"])
    assert {"path", "bytes", "sparsity", "accuracy", "latency_ms"} <= set(data["compact"])
    assert [entry["round_number"] for entry in data["rounds"]] == [0, 1, 2, 3]
    assert {"accuracy", "seconds", "devices"} <= set(data["rounds"][1])
    device = data["rounds"][1]["devices"][0]
    assert {"device_id", "arm", "sparsity", "measurements", "evaluation"} <= set(device)
    assert set(device["measurements"]) == {field.name for field in msgspec.structs.fields(Measurements)}
    assert data["schema_version"] == 2


def test_the_end_is_the_last_round_and_sums_add_up() -> None:
    report = sample_report()

    assert report.final.perplexity == pytest.approx(math.exp(3.0))
    assert report.final.seconds == 10.0 + 5.0 + 16.0
    assert (report.final.bytes_up, report.final.bytes_down) == (8 * 1000, 8 * 2000)
    assert report.steps["training"] == 16.0


@pytest.mark.parametrize("task", TASKS)
def test_rounds_are_compared_on_one_sample_and_the_end_is_on_all(task: Task) -> None:
    report = sample_report(task, sampled_records())

    assert (report.final.loss, report.final.loss_at_sparsity) == (4.0, 4.0)
    assert (report.rounds[-1].loss, report.rounds[-1].num_targets) == (3.0, 500)
    assert report.kept is report.rounds[-1]
    before, after, on_all = ("403.4", "20.1", "54.6") if task == "causal-lm" else ("25.0 %", "85.0 %", "75.0 %")
    unit = report.target_unit
    page = " ".join(render_page(report).split())
    assert f"{before} →</small> {after}" in page
    assert f"on the 500 {unit} that rounds share; {on_all} on all 5,000 {unit}" in page
    assert f"where the whole model has {on_all}" in page
    assert "that rounds share" not in render_page(sample_report(task))
    first, second = summary_lines(report, Path())[:2]
    name = metric_name(task)
    assert first.startswith(f"{name} on 500 of 5,000 held-out {unit}: {before} before training, {after} after 3 rounds")
    compact = "33.1" if task == "causal-lm" else "80.0 %"
    assert second == f"{name} on all 5,000 held-out {unit}: {on_all} whole model, {compact} compact model"


def test_a_compact_model_that_was_measured_on_the_sample_stands_beside_figures_of_the_sample() -> None:
    report = sample_report("text-classification", sampled_records())
    assert report.compact is not None
    compact = msgspec.structs.replace(report.compact, num_targets=500)
    report = msgspec.structs.replace(report, compact=compact)

    first, second = summary_lines(report, Path())[:2]
    assert first.endswith("85.0 % after 3 rounds on 3 devices (31.0 s in all), 80.0 % compact model")
    assert second == "accuracy on all 5,000 held-out examples: 75.0 %"
    page = " ".join(render_page(report).split())
    assert "on the 500 examples that rounds share, where the whole model has 85.0 %" in page


def test_a_round_that_was_not_measured_is_passed_over() -> None:
    records = round_records()
    records[-1] = msgspec.structs.replace(records[-1], evaluation=None)
    report = sample_report(rounds=records)

    assert report.kept is report.rounds[-2]
    assert report.final.loss == report.kept.loss
    assert "403.4 →</small> 54.6" in render_page(report)


def test_a_run_without_an_evaluated_round_has_no_report() -> None:
    summary = RunSummary(
        run_id="r", task="causal-lm", model_name="m", artifact_digest="", created_at=0.0, steps={},
        data=sample_report().data, config={},
    )  # fmt: skip

    with pytest.raises(RunFailedError, match="no finished round"):
        build_report(summary, [], None)


@pytest.mark.parametrize("data", MALFORMED_REPORTS, ids=range(len(MALFORMED_REPORTS)))
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(ReportError):
        decode_report(data)


def test_the_documented_schema_is_the_code_s() -> None:
    documented = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))

    assert documented == json.loads(json.dumps(msgspec.json.schema(Report)))


@pytest.mark.parametrize("task", TASKS)
def test_a_compact_model_that_is_broken_has_no_loss_and_is_shown(task: Task) -> None:
    report = sample_report(task)
    assert report.compact is not None
    accuracy, ppl = quality_fields(task, None, 0.5)
    compact = msgspec.structs.replace(report.compact, loss=None, accuracy=accuracy, perplexity=ppl)
    broken = msgspec.structs.replace(report, compact=compact)

    assert decode_report(encode(broken)) == broken
    assert "Compact model" in render_page(broken)


def test_every_field_is_documented() -> None:
    text = (DOCS / "report.md").read_text(encoding="utf-8")

    missing = {
        name
        for part in msgspec.json.schema(Report)["$defs"].values()
        for name in part["properties"]
        if f"`{name}`" not in text
    }

    assert missing == set()


@pytest.mark.parametrize("task", TASKS)
def test_the_page_shows_before_and_after_and_needs_no_network(task: Task) -> None:
    page = render_page(sample_report(task))
    assert "each device holds back at most a fifth" in page

    before, after = ("403.4", "20.1") if task == "causal-lm" else ("25.0 %", "85.0 %")
    assert f"{before} →" in page
    assert after in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "url(http" not in page
    assert "device-2 lost" in page


def test_the_page_and_the_last_words_show_each_device_s_arm_by_round() -> None:
    report = sample_report("causal-lm")
    one = FleetClass(
        name="tx2",
        device_ids=("device-2",),
        compute_factor=8.3,
        memory_mb=0,
        uplink_mbit_s=1.0,
        downlink_mbit_s=1.0,
        availability=1.0,
        drift=(),
    )
    report = msgspec.structs.replace(report, fleet=FleetEntry(classes=(one,), jitter=0.0, deadline_s=0.0))

    lines = arm_lines(report)
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", render_page(report)))

    assert lines[1:] == [
        "  device-1: 0.5:4 0.0:8 0.25:8",
        "  device-2 (emulated tx2): 0.0:8 0.25:8 0.5:4",
        "  device-3: 0.25:8 0.5:4 0.0:8",
    ]
    for line in lines[1:]:
        assert line.strip().replace(": ", " ", 1) in page


def test_text_of_a_model_is_escaped() -> None:
    assert "&lt;the&gt; value" in render_page(sample_report("causal-lm"))


@pytest.mark.parametrize("task", TASKS)
def test_charts_are_well_formed_and_share_no_id(task: Task) -> None:
    charts = [ET.fromstring(chart) for chart in all_charts(sample_report(task))]  # noqa: S314 - our own text

    ids = [element.attrib["id"] for chart in charts for element in chart.iter() if "id" in element.attrib]
    assert len(charts) == 7
    assert len(ids) == len(set(ids))


def _lines(report: Report, chart: Callable[[Report, Axes], None]) -> tuple[dict[str, list[float]], Axes]:
    """Vertical places of each line of a chart, by its label."""
    axes = Figure().add_subplot()
    chart(report, axes)
    return {str(line.get_label()): np.asarray(line.get_ydata(), float).tolist() for line in axes.get_lines()}, axes


@pytest.mark.parametrize("chart", [quality_over_rounds, quality_over_time])
@pytest.mark.parametrize("task", TASKS)
def test_only_points_of_the_same_examples_are_joined(task: Task, chart: Callable[[Report, Axes], None]) -> None:
    lines, axes = _lines(sample_report(task, sampled_records()), chart)

    unit = "tokens" if task == "causal-lm" else "examples"
    rounds, on_all = lines[f"global model, 500 {unit}"], lines[f"global model, 5,000 {unit}"]
    assert (len(rounds), len(on_all)) == (4, 1)
    assert lines[f"compact model, 5,000 {unit}, 24% removed"][0] == pytest.approx(33.1 if unit == "tokens" else 0.8)
    assert axes.get_ylabel() == ("perplexity per token, logarithmic scale" if unit == "tokens" else "examples right")
    assert axes.get_yscale() == ("log" if unit == "tokens" else "linear")


def test_rounds_measured_on_other_numbers_of_examples_are_lines_of_their_own() -> None:
    records = round_records()
    for number, count in ((1, 96), (3, 96)):
        evaluation = records[number].evaluation
        assert evaluation is not None
        records[number] = msgspec.structs.replace(
            records[number], evaluation=msgspec.structs.replace(evaluation, num_targets=count)
        )
    lines, _ = _lines(sample_report(rounds=records), quality_over_rounds)

    assert {label: len(ys) for label, ys in lines.items() if label.startswith("global")} == {
        "global model, 500 tokens": 2,
        "global model, 96 tokens": 2,
    }


def test_perplexities_close_to_each_other_have_a_linear_scale() -> None:
    records = [msgspec.structs.replace(record, evaluation=round_records()[3].evaluation) for record in round_records()]
    _, axes = _lines(sample_report(rounds=records), quality_over_rounds)

    assert (axes.get_ylabel(), axes.get_yscale()) == ("perplexity per token", "linear")


@pytest.mark.parametrize("task", TASKS)
def test_every_figure_on_a_card_has_a_unit(task: Task) -> None:
    report = sample_report(task, sampled_records())
    page = " ".join(render_page(report).split())

    values = re.findall(r'<div class="value">(.*?)</div>', page)
    assert len(values) == 6
    for value in values:
        assert re.search(r"per token|right|ms per|\d s|min|[kMG]?B", value), value


def test_charts_of_a_run_that_lost_every_update_can_be_drawn() -> None:
    report = sample_report()
    summary = RunSummary(
        run_id="r", task="causal-lm", model_name="m", artifact_digest="", created_at=0.0, steps={},
        data=report.data, config={},
    )  # fmt: skip

    assert len(all_charts(build_report(summary, round_records(0), None))) == 7


def test_figures_for_people() -> None:
    assert [bytes_text(n) for n in (0, 999, 1500, 2_340_000, 5e9)] == ["0 B", "999 B", "1.5 kB", "2.34 MB", "5 GB"]
    assert [duration_text(s) for s in (0.04, 59.96, 61, 3600)] == ["0.0 s", "60.0 s", "1 min 01 s", "60 min 00 s"]


def test_a_hopeless_loss_has_a_finite_perplexity() -> None:
    assert math.isfinite(perplexity(1e9))
    assert perplexity(-1.0) == 1.0


def emulated_report() -> Report:
    """Rounds of 50 emulated seconds each, with a sub-model measured in the last."""
    rounds = [
        msgspec.structs.replace(record, emulated_s=50.0, elapsed_emulated_s=50.0 * (record.round_number + 1))
        for record in round_records()
    ]
    sparse = EvaluationRecord(loss=1.0, accuracy=0.5, num_targets=500, is_complete=True, evaluate_s=0.5)
    rounds[-1] = msgspec.structs.replace(rounds[-1], sparse=sparse, is_deploy=True)
    tx2 = FleetClass(
        name="tx2",
        device_ids=("device-1", "device-2"),
        compute_factor=8.3,
        memory_mb=0,
        uplink_mbit_s=10.0,
        downlink_mbit_s=20.0,
        availability=0.9,
        drift=(FleetDrift(from_round=2, factor=3.0),),
    )
    summary = RunSummary(
        run_id="r", task="text-classification", model_name="m", artifact_digest="", created_at=0.0, steps={},
        data=sample_report().data, config={"sparsity": 0.5},
        fleet=FleetEntry(classes=(tx2,), jitter=0.05, deadline_s=0.0),
    )  # fmt: skip
    return build_report(summary, rounds, None)


def test_emulated_time_is_reported_and_called_so() -> None:
    report = emulated_report()

    assert decode_report(encode(report)) == report
    assert (report.final.emulated_s, report.rounds[1].emulated_s, report.rounds[1].elapsed_emulated_s) == (200, 50, 100)
    page = render_page(report)
    assert "Emulated time" in page
    assert "x 3.0 from round 2" in page
    assert "modelled, not measured" in page


def test_the_sub_model_has_figures_of_its_own() -> None:
    report = emulated_report()

    assert (report.final.accuracy_at_sparsity, report.final.loss_at_sparsity) == (0.5, 1.0)
    assert [entry.is_deploy for entry in report.rounds] == [False, False, False, True]
    data = json.loads(encode(report))
    assert "accuracy_at_sparsity" not in data["rounds"][1]
    assert "At sparsity 50.0%" in render_page(report)
