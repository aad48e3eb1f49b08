"""``--csv``: every device's part in every round, with what the round was worth; whole, in UTF-8, and no formula."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from broker_server.cli import app
from broker_server.errors import ConfigError
from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.csv_rows import to_csv
from broker_server.methods.by_name import method_of
from broker_server.methods.presets import PRESETS
from tests.broker_server.experiments.compare.samples import DOCS, device, report
from tests.broker_server.other_axes import ONE_ARM, THREE_AXES

SOME = report([0.2, 0.7, 0.85], sparse=[0.2, 0.6, 0.8])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_a_row_for_each_method_seed_round_and_device() -> None:
    keys = [RunKey(method=name, seed=seed) for name in ("fedspine", "fedit+churn") for seed in (0, 1)]
    found = rows(to_csv(dict.fromkeys(keys, SOME)))
    assert [(row["method"], row["seed"]) for row in found[::5]] == [(key.method, str(key.seed)) for key in keys]
    assert [(row["round_number"], row["device_id"]) for row in found[:5]] == [
        ("0", ""), ("1", "device-1"), ("1", "device-2"), ("2", "device-1"), ("2", "device-2"),
    ]  # fmt: skip


def test_a_row_has_what_the_device_did_and_what_the_round_was_worth() -> None:
    before, row, *_ = rows(to_csv({RunKey(method="fedspine", seed=0): SOME}))
    expected = {
        "device_id": "device-1", "device_class": "slow", "outcome": "accepted", "pruning_ratio": "0.5", "rank": "8",
        "sparsity": "0.5", "completion_s": "10.0", "train_loss": "1.0", "bytes_up": "10", "bytes_down": "1010",
        "round_accuracy": "0.7", "round_accuracy_at_sparsity": "0.6", "round_perplexity": "",
        "round_emulated_s": "10.0", "reason": "", "round_is_deploy": "false",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert (before["round_accuracy"], before["outcome"], before["rank"]) == ("0.2", "", "")


def test_every_column_is_documented_and_none_is_twice() -> None:
    header = to_csv({}).strip().split(",")
    text = (DOCS / "compare.md").read_text(encoding="utf-8")
    assert len(set(header)) == len(header)
    assert [name for name in header if f"`{name}`" not in text] == []


def test_text_from_a_device_is_no_formula_and_breaks_no_row() -> None:
    hostile = msgspec.structs.replace(device(1, 5.0), detail='=HYPERLINK("http://x"),\n"ü')
    text = to_csv({RunKey(method="fedspine", seed=0): report([0.2, 0.7], devices={1: (hostile,)})})
    assert "'=HYPERLINK" in text
    (_, row) = csv.DictReader(text.splitlines(keepends=True))
    assert row["detail"] == '\'=HYPERLINK("http://x"),\n"ü'
    assert row["round_accuracy"] == "0.7"


def test_an_arm_has_a_column_for_each_axis_that_its_method_plays() -> None:
    arms = {"fedspine": "0.5:8", THREE_AXES: "0.25:4:batch_size=2", "probe": "0.25", ONE_ARM: ""}
    runs = {}
    for method, arm in arms.items():
        played = msgspec.structs.replace(device(1, 5.0), arm=method_of(method).axes.parse(arm)[0])
        runs[RunKey(method=method, seed=0)] = report([0.2, 0.7], devices={1: (played,)}, method=method)
    found = {row["method"]: row for row in rows(to_csv(runs)) if row["device_id"]}
    assert {method: (row["pruning_ratio"], row["rank"], row["batch_size"]) for method, row in found.items()} == {
        "fedspine": ("0.5", "8", ""), THREE_AXES: ("0.25", "4", "2"), "probe": ("0.25", "", ""), ONE_ARM: ("", "", ""),
    }  # fmt: skip
    (_, row) = rows(to_csv({key: one for key, one in runs.items() if key.method == "probe"}))
    assert "rank" not in row


@pytest.mark.parametrize("method", PRESETS)
def test_no_axis_has_the_name_of_another_column_and_values_with_names_stand_by_them(method: str) -> None:
    axes = method_of(method).axes
    played = msgspec.structs.replace(device(1, 5.0), arm=axes.parse(method_of(method).default_arms)[0])
    text = to_csv({RunKey(method=method, seed=0): report([0.2, 0.7], devices={1: (played,)}, method=method)})
    header = text.splitlines()[0].split(",")
    assert len(set(header)) == len(header)
    (_, row) = rows(text)
    assert {axis.name: row[axis.name] for axis in axes} == {
        axis.name: str(axis.shown(axis.of(played.arm))) for axis in axes
    }
    assert row.get("order", "") == ("first-order" if method in {"mixed", "zowarmup"} else "")


@pytest.mark.parametrize("name", ["missing/rows.csv", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    quick = DOCS.parent / "benchmarks" / "compare" / "quick.toml"
    out = tmp_path / "out"
    arguments = ["compare", str(quick), "--quick", "--out", str(out), "--csv", str(tmp_path / name)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "--csv" in str(result.exception)
    assert not out.exists()
