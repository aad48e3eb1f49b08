"""Reports of zero-order tuning: gain over the probe on the same examples, scalars that were not finite."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from broker_server.experiments.run.finishing import arm_lines, summary_lines
from broker_server.methods.mixed.method import Mixed
from broker_server.serving.report.page import render_page
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import RoundRecord
from tests.broker_server.report_samples import round_records, sample_report


def records(works: str, not_finite: int = 0) -> list[RoundRecord]:
    """Rounds of sample devices, asked for the probe (``p``), for steps (``z``) or for LoRA (``l``)."""
    kinds = {"p": "probe", "z": "zero_order", "l": "lora"}
    made = round_records(len(works))
    for number, kind in enumerate(works, start=1):
        devices = [
            msgspec.structs.replace(d, work=kinds[kind], not_finite=not_finite if kind == "z" else None)
            for d in made[number].devices
        ]
        made[number] = msgspec.structs.replace(made[number], devices=tuple(devices))
    return made


def report(rounds: list[RoundRecord]) -> Report:
    return sample_report("text-classification", rounds, method="fedspzo")


def test_the_gain_is_over_the_round_that_the_head_came_from() -> None:
    """Sample rounds have accuracies 0.45, 0.65, 0.85 and losses 5, 4, 3."""
    over = report(records("pzz")).over_first_work
    assert over is not None
    assert (over.round_number, over.accuracy, over.loss) == (1, 0.45, 5.0)
    assert over.accuracy_gain == pytest.approx(0.4)
    assert over.loss_fall == 2.0
    made = report(records("pzz"))
    line = "45.0 % after round 1, 85.0 % after round 3 (+40.0 points), loss 5.0000 -> 3.0000"
    assert f"over the probe that it began with: {line}" in summary_lines(made, Path())
    page = render_page(made)
    assert "Over the probe that it began with" in page
    assert "+40.0" in page


def test_a_loss_over_the_probe_is_called_one() -> None:
    rounds = records("pzz")
    evaluation = rounds[-1].evaluation
    assert evaluation is not None
    rounds[-1] = msgspec.structs.replace(rounds[-1], evaluation=msgspec.structs.replace(evaluation, accuracy=0.4))
    assert any("40.0 % after round 3 (-5.0 points)" in line for line in summary_lines(report(rounds), Path()))


def test_a_first_round_that_nobody_answered_is_not_the_probes() -> None:
    rounds = records("ppz")
    lost = [msgspec.structs.replace(d, outcome="failed") for d in rounds[1].devices]
    rounds[1] = msgspec.structs.replace(rounds[1], devices=tuple(lost))
    over = report(rounds).over_first_work
    assert over is not None
    assert over.round_number == 2


@pytest.mark.parametrize("works", ["ppp", "lll", "zzz"])
def test_other_runs_have_no_gain_over_a_probe(works: str) -> None:
    assert report(records(works)).over_first_work is None
    assert "Over the probe" not in render_page(report(records(works)))


def test_a_gain_on_other_examples_is_none() -> None:
    rounds = records("pzz")
    evaluation = rounds[-1].evaluation
    assert evaluation is not None
    rounds[-1] = msgspec.structs.replace(rounds[-1], evaluation=msgspec.structs.replace(evaluation, num_targets=20))
    assert report(rounds).over_first_work is None


def test_scalars_that_were_not_finite_are_a_warning_with_their_number() -> None:
    found = [line for line in report(records("pzz", not_finite=2)).warnings if "counted as 0" in line]
    (line,) = found
    assert line.startswith("12 scalars of rounds 2 and 3 counted as 0, because a loss was not finite")
    assert not [line for line in report(records("pzz")).warnings if "counted as 0" in line]


def test_the_kind_of_work_stands_behind_arms_where_devices_of_a_round_differ() -> None:
    rounds = records("plz")
    axes = Mixed.axes
    arms = axes.parse("first-order:8,zero-order:8")
    for number, kinds in ((1, ("probe", "probe")), (2, ("lora", "zero_order")), (3, ("zero_order", "zero_order"))):
        devices = [
            msgspec.structs.replace(device, arm=arm, work=kind)
            for device, arm, kind in zip(rounds[number].devices[:2], arms, kinds, strict=True)
        ]
        rounds[number] = msgspec.structs.replace(rounds[number], devices=tuple(devices))
    made = report(rounds)
    made = msgspec.structs.replace(made, config={**made.config, "method": "mixed"})
    names = [device.device_id for device in rounds[1].devices]
    assert arm_lines(made) == [
        "arms (order:rank) over the rounds:",
        f"  {names[0]}: first-order:8 (probe) first-order:8 (lora) first-order:8 (zero_order)",
        f"  {names[1]}: zero-order:8 (probe) zero-order:8 (zero_order) zero-order:8 (zero_order)",
    ]
    page = render_page(made)
    assert "first-order:8 (lora)" in page
    assert "zero-order:8 (zero_order)" in page
