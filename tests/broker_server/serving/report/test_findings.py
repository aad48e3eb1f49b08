"""Findings about a run that ended: causes and options, and none if all went well."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker_server.experiments.run.finishing import summary_lines
from broker_server.serving.report.findings import find_warnings
from broker_server.serving.report.page import render_page
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import EvaluationRecord, KeptRecord, RoundRecord
from edge_runtime.formats.manifest import Task
from tests.broker_server.report_samples import device_record, round_records, sample_report

CONFIG: dict[str, str | float] = {"learning_rate": 1000.0, "arms": "0.0:8,0.25:4", "sparsity": 0.25}


def with_accuracies(*values: float, num_targets: int = 5000) -> list[RoundRecord]:
    """Rounds with these accuracies, and losses that fall as they rise."""
    records = round_records(len(values) - 1)
    return [
        msgspec.structs.replace(
            record,
            evaluation=EvaluationRecord(
                loss=2.0 - value, accuracy=value, num_targets=num_targets, is_complete=True, evaluate_s=0.1
            ),
        )
        for record, value in zip(records, values, strict=True)
    ]


def warnings(records: list[RoundRecord], task: Task = "text-classification", **config: str | float) -> tuple[str, ...]:
    report = sample_report(task, records)
    return find_warnings(task, report.rounds, report.final.round_number, report.compact, {**CONFIG, **config})


def test_run_that_went_well_has_no_warnings() -> None:
    assert warnings(with_accuracies(0.5, 0.6, 0.7)) == ()
    assert warnings(round_records(), "causal-lm") == ()
    assert "warning" not in "\n".join(summary_lines(sample_report(), Path()))


def test_compact_model_that_should_be_the_whole_one_and_is_not_is_said() -> None:
    report = sample_report("text-classification")
    whole, loss = report.compact, report.kept.loss
    assert whole is not None
    assert loss is not None

    def said(**changes: object) -> tuple[str, ...]:
        compact = msgspec.structs.replace(whole, **{"sparsity": 0.0, "num_targets": 500, **changes})
        return find_warnings(report.task, report.rounds, report.final.round_number, compact, CONFIG)

    (warning,) = said(loss=loss + 0.1)
    assert warning.startswith("nothing was removed from the compact model, but its held-out loss is 3.1 and that")
    assert said(loss=loss + 1e-5) == ()
    for unlike in ({"sparsity": 0.1}, {"quantization": "int8"}, {"num_targets": 5000}):
        assert said(loss=loss + 0.1, **unlike) == ()


def test_model_that_got_worse_is_said_with_the_option_to_change() -> None:
    worse, better = warnings(with_accuracies(0.78, 0.80, 0.71))
    assert worse == (
        "the model got worse: accuracy 78.0 % before training, 71.0 % after round 2; "
        "lower --learning-rate (now 1000.0), or train less"
    )
    assert better.startswith("round 1 was better (80.0 %) than round 2, which is kept (71.0 %): --keep best")


@pytest.mark.parametrize(("num_targets", "is_said"), [(100, False), (20000, True)])
def test_difference_within_the_error_of_the_sample_is_not_called_worse(num_targets: int, *, is_said: bool) -> None:
    assert bool(warnings(with_accuracies(0.60, 0.575, num_targets=num_targets))) is is_said


def test_perplexity_that_rose_is_worse() -> None:
    records = round_records(2)
    records = [records[0], msgspec.structs.replace(records[1], evaluation=records[0].evaluation)]
    assert warnings(records, "causal-lm") == ()
    grown = msgspec.structs.replace(
        records[1], evaluation=EvaluationRecord(loss=7.0, accuracy=0, num_targets=500, is_complete=True, evaluate_s=1)
    )
    (worse,) = warnings([records[0], grown], "causal-lm")
    assert worse.startswith("the model got worse: perplexity 403.4 before training, 1096.6 after round 1")


def test_rounds_without_effect_are_named_with_the_reason_and_the_cause() -> None:
    refused = device_record(1, 1, "rejected")
    refused = msgspec.structs.replace(refused, detail="a.lora_B.weight is too large", reason="diverged")
    records = with_accuracies(0.5, 0.5, 0.5)
    records = [records[0], *(msgspec.structs.replace(record, devices=(refused,)) for record in records[1:])]
    (line,) = warnings(records)
    assert line == (
        "rounds 1 and 2 used no update (device-1 rejected: a.lora_B.weight is too large); "
        "training diverges: lower --learning-rate (now 1000.0)"
    )


def test_discarded_and_unchanged_rounds_are_told() -> None:
    records = with_accuracies(0.5, 0.5, 0.5, 0.5)
    records[1] = msgspec.structs.replace(records[1], discarded="aggregation failed: not finite")
    records[3] = msgspec.structs.replace(records[3], is_unchanged=True)
    empty, unchanged = warnings(records, learning_rate=0.0)
    assert empty == "round 1 used no update (aggregation failed: not finite)"
    assert unchanged.startswith("round 3 left the adapter as it was, to the last bit")
    assert "raise --learning-rate (now 0.0)" in unchanged


def with_louder_end(*accuracies: float) -> list[RoundRecord]:
    records = with_accuracies(*accuracies)
    louder = tuple(msgspec.structs.replace(device, train_loss=2.5) for device in records[-1].devices)
    return [*records[:-1], msgspec.structs.replace(records[-1], devices=louder)]


def test_training_loss_that_rises_is_told() -> None:
    (line,) = warnings(with_louder_end(0.5, 0.5, 0.5))
    assert line.startswith(
        "the devices' training loss rose from 1.5 in round 1 to 2.5 in round 2: lower --learning-rate"
    )


def test_training_loss_that_rises_as_the_model_gets_better_is_no_fault() -> None:
    """So it does where later rounds prune more."""
    assert warnings(with_louder_end(0.5, 0.6, 0.7)) == ()


def test_compact_model_that_nobody_trained_is_told() -> None:
    (line,) = warnings(with_accuracies(0.5, 0.6), arms="0.0:4")
    assert line.startswith("the compact model is cut by 0.25, which no device trained: the arms prune at most 0;")
    assert warnings(with_accuracies(0.5, 0.6), arms="0.0:4", deploy_rounds=2) == ()


def shown(report: Report) -> str:
    return " ".join(render_page(report).split())


def test_page_and_terminal_show_the_warnings_and_the_colour_follows_the_sign() -> None:
    worse = sample_report("text-classification", with_accuracies(0.78, 0.71))
    assert worse.warnings
    assert '<span class="bad">-7.0 points</span>' in shown(worse)
    assert "the model got worse" in shown(worse)
    assert any(line.startswith("warning: the model got worse") for line in summary_lines(worse, Path()))
    assert '<span class="good">+20.0 points</span>' in shown(
        sample_report("text-classification", with_accuracies(0.5, 0.7))
    )
    same = shown(sample_report("text-classification", with_accuracies(0.5, 0.5)))
    assert '<span class="">+0.0 points</span>' in same


def test_kept_round_is_what_the_run_ends_with() -> None:
    records = with_accuracies(0.5, 0.8, 0.7)
    assert records[1].evaluation is not None
    kept = KeptRecord(round_number=1, evaluation=msgspec.structs.replace(records[1].evaluation, accuracy=0.79))
    records[2] = msgspec.structs.replace(records[2], kept=kept)
    report = sample_report("text-classification", records)
    assert (report.final.round_number, report.final.accuracy) == (1, 0.79)
    assert report.warnings == ()
    assert "80.0 % after round 1, the best of 2 rounds on 3 devices" in summary_lines(report, Path())[0]
