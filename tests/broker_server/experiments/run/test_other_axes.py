"""Report, terminal and curves of methods whose arms are not LoRA's: they show what the method says that it plays."""

from __future__ import annotations

import io
import re

import msgspec
import pytest
from rich.console import Console

from broker_server.experiments.run.finishing import arm_lines
from broker_server.experiments.run.progress import render
from broker_server.experiments.run.view import RunView
from broker_server.methods.by_name import method_of
from broker_server.serving.callbacks.metrics import round_metrics
from broker_server.serving.report.charts import all_charts
from broker_server.serving.report.findings import find_warnings
from broker_server.serving.report.page import render_page
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.events import RoundStarted
from broker_server.serving.storage.records import RoundRecord
from tests.broker_server.other_axes import ONE_ARM, THREE_AXES
from tests.broker_server.report_samples import round_records, sample_report

ARMS = {THREE_AXES: "0.25:8,0.5:4:batch_size=2,0.0:8:batch_size=4", "probe": "0.25,0.5,0.0", ONE_ARM: ""}


def records_of(method: str) -> list[RoundRecord]:
    """As :func:`round_records`, each device with an arm of its own."""
    arms = method_of(method).axes.parse(ARMS[method]) * 3
    return [
        msgspec.structs.replace(
            record,
            devices=tuple(
                msgspec.structs.replace(device, arm=arm) for device, arm in zip(record.devices, arms, strict=False)
            ),
        )
        for record in round_records()
    ]


def report_of(method: str) -> Report:
    report = sample_report(rounds=records_of(method))
    return msgspec.structs.replace(report, config={**report.config, "method": method, "arms": ARMS[method]})


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(?!!--)[^>]*>", " ", page))


def test_a_page_of_a_method_with_an_axis_more_shows_it() -> None:
    page = text_of(render_page(report_of(THREE_AXES)))
    assert "Arms: pruning ratio, rank and batch size of each device, by round" in page
    assert "RATIO:RANK[:batch_size=EXAMPLES], as the last steps" in page
    assert "the darker, the more is pruned" in page
    assert "device-2 0.5:4:batch_size=2" in page
    for title in ("Arms by round: pruning ratio, and rank:batch size beside it", "Training time by device and arm"):
        assert f"<!-- {title} -->" in page
    assert "<!-- 50% pruned, rank 4, batches of 2 -->" in page
    assert "<!-- rank 4, -->" in page, "names of arms under a chart are on several lines"
    assert arm_lines(report_of(THREE_AXES))[0] == "arms (pruning ratio:rank:batch size) over the rounds:"


def test_a_page_of_a_probe_has_no_rank() -> None:
    report = report_of("probe")
    page = text_of(render_page(report))
    assert "Arms: pruning ratio of each device, by round" in page
    assert "RATIO, as the last steps" in page
    assert "<!-- Arms by round: pruning ratio -->" in page
    assert "<!-- 25% pruned -->" in page
    assert arm_lines(report) == [
        "arms (pruning ratio) over the rounds:", "  device-1: 0.25 0.25 0.25", "  device-2: 0.5 0.5 0.5",
        "  device-3: 0.0 0.0 0.0",
    ]  # fmt: skip
    assert "rank" not in page.lower()


def test_a_page_of_a_method_with_one_arm_has_no_table_of_arms() -> None:
    report = report_of(ONE_ARM)
    page = text_of(render_page(report))
    assert "Arms" not in page
    for title in ("Training time by device", "Time of an optimizer step", "one arm"):
        assert f"<!-- {title} -->" in page
    assert len(all_charts(report)) == len(all_charts(report_of("probe"))) - 1
    assert arm_lines(report) == []
    assert "rank" not in page.lower()


@pytest.mark.parametrize(
    ("method", "advice"),
    [("probe", "; lower --sparsity, or add an arm of that ratio to --arms"), (ONE_ARM, "; lower --sparsity")],
)
def test_the_advice_about_a_ratio_that_nobody_trained_is_one_that_can_be_followed(method: str, advice: str) -> None:
    report = report_of(method)
    config = {**report.config, "arms": "0.0" if method == "probe" else ""}
    lines = find_warnings("causal-lm", report.rounds, 3, report.compact, config)
    (line,) = [line for line in lines if "which no device trained" in line]
    assert line.endswith(advice)


@pytest.mark.parametrize(
    ("method", "arm", "line"),
    [
        (THREE_AXES, "0.421875:6:batch_size=2", "round 1/3, arms: device-1 0.42:6:batch_size=2"),
        ("probe", "0.421875", "round 1/3, arms: device-1 0.42"),
        (ONE_ARM, "", "round 1/3, 1 device"),
    ],
)
def test_the_terminal_shows_the_arms_that_the_method_plays(method: str, arm: str, line: str) -> None:
    view = RunView("causal-lm", ("device-1", "device-2"), 3, method_of(method).axes)
    assert view.apply(RoundStarted(at=0.0, round_number=1, arms={"device-1": arm})) == line
    assert view.devices["device-1"].arm
    assert not view.devices["device-2"].arm
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(render(view, 0.0))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("arms so far" in shown) == ("arm " in shown) == (method != ONE_ARM)
    assert "one arm" not in shown
    view.apply(RoundStarted(at=0.0, round_number=2, arms={"device-2": arm}))
    assert len(view.devices["device-1"].earlier) == 1


@pytest.mark.parametrize(
    ("method", "names"),
    [(THREE_AXES, {"pruning_ratio", "rank", "batch_size"}), ("probe", {"pruning_ratio"}), (ONE_ARM, set())],
)
def test_curves_are_of_the_axes_that_the_method_plays(method: str, names: set[str]) -> None:
    figures = round_metrics(records_of(method)[1], "causal-lm", method_of(method).axes)
    drawn = {name.split("/")[1] for name in figures if name.startswith("device/")}
    assert drawn - {"train_loss", "completion_seconds"} == names
