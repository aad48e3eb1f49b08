"""``summary.json``, its tables, its page."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from broker_server.errors import ReportError, RunFailedError
from broker_server.experiments.compare.charts import all_charts
from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.page import render_page
from broker_server.experiments.compare.summarise import figure, summarise
from broker_server.experiments.compare.summary_schema import (
    Figure,
    Summary,
    decode_summary,
)
from broker_server.experiments.compare.tables import all_tables, to_markdown
from broker_server.experiments.compare.trace import Trace
from broker_server.serving.report.encoding import encode
from tests.broker_server.experiments.compare.samples import DOCS, comparison, device, finished, trace
from tests.broker_server.malformed import MALFORMED_REPORTS
from tests.broker_server.other_axes import ONE_ARM
from tests.three_axes import AXES

FAST = [0.2, 0.7, 0.85, 0.9, 0.9]
SLOW = [0.2, 0.4, 0.6, 0.75, 0.82]


def sample(*, is_causal: bool = False) -> Summary:
    """FedSpine is faster; FedIT reaches the target with one seed of two; an oracle; a scenario; one run failed."""
    scale = 100.0 if is_causal else 1.0

    def runs(curve: list[float], seconds: float, **options: object) -> list[object]:
        values = [scale / value for value in curve] if is_causal else curve
        return [
            trace(values, sparse=values, slow_s=seconds, is_causal=is_causal, **options),
            trace(values[:-1] + values[-2:-1], sparse=values, slow_s=seconds + 1, is_causal=is_causal, **options),
        ]

    lost = {2: (device(1, 5.0), device(2, None, outcome="lost"))}
    task = "causal-lm" if is_causal else "text-classification"
    found = comparison(
        methods=["fedspine", "fedit", "oracle"],
        target=scale / 0.8 if is_causal else 0.8,
        scenario={"churn": {"methods": ["fedspine"]}},
        run={"rounds": 4, "arms": "0.0:4,0.5:8", "sparsity": 0.5, "model": "m", "task": task, "data": "/a/d.jsonl"},
    )
    traces = finished(
        fedspine=runs(FAST, 5.0),  # type: ignore[arg-type]
        fedit=runs(SLOW, 10.0),  # type: ignore[arg-type]
        oracle=runs(FAST, 4.0)[:1],  # type: ignore[arg-type]
    )
    churn = runs(FAST, 6.0, devices=lost)
    traces |= {RunKey(method="fedspine+churn", seed=seed): run for seed, run in enumerate(churn)}  # type: ignore[misc]
    return summarise(found, traces, {RunKey(method="oracle", seed=1): "device-1: no memory"}, 1_790_000_000.0)


def test_a_summary_survives_its_file() -> None:
    for summary in (sample(), sample(is_causal=True)):
        assert decode_summary(encode(summary)) == summary


def test_a_summary_has_every_figure_that_was_promised_with_median_and_spread() -> None:
    data = json.loads(encode(sample()))

    promised = "time_to_target_s bytes_to_target final_accuracy accuracy_at_sparsity regret infeasible_plays_ratio"
    for method in data["methods"].values():
        for name in promised.split():
            assert {"median", "min", "max", "values", "num_known"} <= set(method[name])
    assert data["methods"]["fedspine"]["time_to_target_s"]["values"] == [10.0, 12.0]
    assert data["methods"]["fedspine"]["time_to_target_s"]["median"] == 11.0


def test_perplexity_takes_the_place_of_accuracy() -> None:
    method = json.loads(encode(sample(is_causal=True)))["methods"]["fedspine"]

    assert {"final_perplexity", "perplexity_at_sparsity"} <= set(method)
    assert not {"final_accuracy", "accuracy_at_sparsity"} & set(method)


def test_a_target_that_half_of_the_seeds_missed_has_no_median_and_says_how_many_reached_it() -> None:
    reached = sample().methods["fedit"].time_to_target_s

    assert reached == Figure(median=None, min=40.0, max=40.0, values=(40.0, None), num_known=1)


def test_a_seed_that_was_not_run_does_not_count_as_never_reached() -> None:
    assert figure([4.0, None, None], unknown=float("inf"), num_finished=1).median == 4.0


def test_regret_is_against_the_oracle_of_the_same_seed() -> None:
    methods = sample().methods

    assert methods["fedspine"].regret.values == (4.0, None)  # the oracle's second seed failed
    assert methods["oracle"].regret.values == (0.0, None)
    assert methods["fedspine+churn"].regret.values == (None, None)  # no oracle under that scenario
    assert [point.median for point in methods["fedit"].regret_curve] == [6.0, 12.0, 18.0, 24.0]


def test_budgets_are_shares_of_what_the_cheapest_method_spent() -> None:
    budgets = [(budget.kind, budget.amount) for budget in sample().methods["fedit"].budgets]

    assert budgets[:3] == [("time_s", 4.0), ("time_s", 8.0), ("time_s", 16.0)]
    assert [b.quality.median for b in sample().methods["fedspine"].budgets[:3]] == [0.2, 0.7, 0.875]


def test_runs_that_failed_and_runs_that_are_missing_are_named() -> None:
    summary = summarise(
        comparison(), finished(fedit=[trace(SLOW)]), {RunKey(method="fedspine", seed=0): "no memory"}, 0.0
    )

    assert [(run.method, run.seed, run.error) for run in summary.failed] == [("fedspine", 0, "no memory")]
    assert summary.missing == ("fedspine seed 1", "fedit seed 1")
    assert summary.methods["fedspine"].num_finished == 0
    assert "no memory" in to_markdown(summary)
    assert "no memory" in render_page(summary)


def test_a_comparison_without_a_result_has_no_summary() -> None:
    with pytest.raises(RunFailedError, match="no run"):
        summarise(comparison(), {}, {}, 0.0)


@pytest.mark.parametrize("data", MALFORMED_REPORTS, ids=range(len(MALFORMED_REPORTS)))
def test_what_is_no_summary_is_refused(data: bytes) -> None:
    with pytest.raises(ReportError):
        decode_summary(data)


def test_the_documented_schema_is_the_code_s() -> None:
    documented = json.loads((DOCS / "summary.schema.json").read_text(encoding="utf-8"))

    assert documented == json.loads(json.dumps(msgspec.json.schema(Summary)))


def test_every_field_is_documented() -> None:
    text = (DOCS / "compare.md").read_text(encoding="utf-8")

    missing = {
        name
        for part in msgspec.json.schema(Summary)["$defs"].values()
        for name in part["properties"]
        if f"`{name}`" not in text
    }

    assert missing == set()


def test_no_folder_of_the_machine_is_told() -> None:
    assert sample().config["data"] == "d.jsonl"


def test_tables_set_methods_against_the_reference() -> None:
    tables = {table.title: table for table in all_tables(sample())}

    assert {"Quality under budget", "Cost to target", "Robustness"} <= set(tables)  # EdgeFlowerTune's protocols
    cost = {row[0]: row for row in tables["Cost to target"].rows}
    assert cost["FedSpine"][1:4] == ("2 of 2", "11.0 s (10.0 s to 12.0 s)", "1.00")
    assert cost["FedIT"][1:4] == ("1 of 2", "median not reached", "-")
    equal = {row[0]: row for row in tables["Final accuracy at equal sparsity"].rows}
    assert equal["FedIT"][2] == "-8.0"
    robust = [row for row in tables["Robustness"].rows if row[1] == "churn"]
    assert robust[0][2:4] == ("87.5%", "2 lost")


def test_tables_and_charts_have_every_axis_that_arms_have() -> None:
    wide = [with_third_axis(trace(FAST), first) for first in (1, 4)]
    summary = summarise(comparison(), finished(fedspine=wide), {}, 0.0)
    assert [axis.name for axis in summary.axes] == ["pruning_ratio", "rank", "batch_size"]
    table = {table.title: table for table in all_tables(summary)}["Arms by class of device"]
    assert table.note == "Mean pruning ratio : rank : batch size over devices, rounds and seeds."
    assert {row[2:] for row in table.rows} == {("0.50 : 8.0 : 2.5", "0.50 : 8.0 : 5.5")}
    plain = summarise(comparison(), finished(fedspine=[trace(FAST)]), {}, 0.0)
    titles = "".join(all_charts(summary))
    assert "FedSpine: batch size by class of device" in titles
    assert "by class of device" not in "".join(all_charts(plain)), "only one arm was played"
    assert decode_summary(encode(summary)) == summary


def test_a_method_is_shown_by_the_axes_of_its_own_arms() -> None:
    plays = {"fedspine": {}, "probe": {"method": "probe"}, "one": {"method": ONE_ARM}}
    runs = {name: [trace(FAST, **options)] for name, options in plays.items()}
    tables = [{"preset": options.get("method", "fedspine")} for options in plays.values()]
    among = comparison(methods=list(plays), method=dict(zip(plays, tables, strict=True)))
    summary = summarise(among, finished(**runs), {}, 0.0)
    assert [row[2] for row in arm_rows(summary)[::2]] == ["0.50 : 8.0", "0.50 : -", "one arm"]
    assert {tuple(point.values) for point in summary.methods["probe"].arms} == {("pruning_ratio",)}
    alone = summarise(among, finished(one=runs["one"]), {}, 0.0)
    assert {row[2:] for row in arm_rows(alone)} == {("one arm", "one arm")}


def arm_rows(summary: Summary) -> tuple[tuple[str, ...], ...]:
    return {table.title: table for table in all_tables(summary)}["Arms by class of device"].rows


def test_a_chart_of_arms_is_of_an_axis_that_the_method_plays() -> None:
    wide, narrow = with_third_axis(trace(FAST), 1), trace(FAST, method="probe")
    arms = [narrow.axes.parse(text)[0] for text in ("0.0", "0.25", "0.5")]
    rounds = [
        dataclasses.replace(entry, plays=tuple(dataclasses.replace(play, arm=arm) for play in entry.plays))
        for entry, arm in zip(narrow.rounds, arms * 3, strict=False)
    ]
    runs = finished(fedspine=[wide], fedit=[dataclasses.replace(narrow, rounds=tuple(rounds))])
    page = "".join(all_charts(summarise(comparison(), runs, {}, 0.0)))
    assert "FedIT: pruning ratio by class of device" in page
    assert "FedIT: rank by class of device" not in page
    assert "FedSpine: rank by class of device" in page


def with_third_axis(run: Trace, first: int) -> Trace:
    """The run, with one example more in a batch in each round."""
    rounds = []
    for entry in run.rounds:
        arms = [AXES.arm([*AXES.row(play.arm)[:2], first + entry.round_number - 1]) for play in entry.plays]
        plays = tuple(dataclasses.replace(play, arm=arm) for play, arm in zip(entry.plays, arms, strict=True))
        rounds.append(dataclasses.replace(entry, plays=plays))
    return dataclasses.replace(run, axes=AXES, rounds=tuple(rounds))


def test_every_row_of_a_table_has_every_column() -> None:
    for summary in (sample(), sample(is_causal=True)):
        for table in all_tables(summary):
            assert {len(row) for row in table.rows} == {len(table.columns)}, table.title


def test_perplexities_are_compared_by_their_ratio() -> None:
    tables = {table.title: table for table in all_tables(sample(is_causal=True))}

    assert {row[0]: row for row in tables["Final perplexity at equal sparsity"].rows}["FedIT"][2] == "1.098"


@pytest.mark.parametrize("is_causal", [False, True], ids=["accuracy", "perplexity"])
def test_the_page_holds_tables_and_charts_and_needs_no_network(is_causal: bool) -> None:  # noqa: FBT001 - a parameter
    page = render_page(sample(is_causal=is_causal))

    assert page.count("<svg") == len(all_charts(sample(is_causal=is_causal))) >= 6
    assert "Cost to target" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "url(http" not in page


def test_charts_are_well_formed_and_share_no_id() -> None:
    charts = [ET.fromstring(chart) for chart in all_charts(sample())]  # noqa: S314 - our own text

    ids = [element.attrib["id"] for chart in charts for element in chart.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


def test_a_comparison_of_one_run_without_a_target_can_be_shown() -> None:
    summary = summarise(comparison(target=None, seeds=[0]), finished(fedit=[trace([0.3])]), {}, 0.0)

    assert "Cost to target" not in to_markdown(summary)
    assert render_page(summary)
