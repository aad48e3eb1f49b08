"""A method of a package outside has an axis of its own: it is chosen, sent, kept and shown without a change here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.csv_rows import to_csv
from broker_server.experiments.run.resolve import resolve
from broker_server.methods.by_name import method_of
from broker_server.options import flat
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.report.from_run import report_run
from broker_server.serving.report.schema import REPORT_PAGE
from broker_server.serving.services import fleets
from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import Arm
from tests.broker_server import fleet
from tests.broker_server.links import InProcess, open_link
from tests.replies import lora_of

pytestmark = pytest.mark.usefixtures("plugin")

ARMS = "0.0:3:batch_size=16,0.5:2:batch_size=4"


def test_the_method_says_how_its_arms_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["methods", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["own_batch"]["arms"] == "RATIO:RANK[:batch_size=EXAMPLES]"
    assert (found["fedspine"]["arms"], found["probe"]["arms"]) == ("RATIO:RANK", "RATIO")
    assert flat(resolve({"method": "own_batch", "emulate": "none"}))["arms"] == "0.0:8:batch_size=16,0.5:4:batch_size=4"


@pytest.mark.parametrize("scheduler", ["fixed", "fedspine"])
def test_devices_do_what_the_arm_says_and_report_and_rows_show_it(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)
    axes, broker = method_of("own_batch").axes, InProcess()
    asked: dict[tuple[str, int], Arm] = {}

    def train(assignment: Assignment, blob: bytes) -> bytes:
        work, key = lora_of(assignment), assignment.key
        asked[key.device_id, key.round_number] = work.arm
        assert work.hyper_parameters.batch_size == axes["batch_size"].of(work.arm)
        return fleet.train(assignment, blob)

    fleet.config(tmp_path, broker.url, method="own_batch", scheduler=scheduler, arms=axes.parse(ARMS))
    with fleet.Device(broker.url, "a", train), fleet.Device(broker.url, "b", train):
        run_coordinator(tmp_path, open_link(broker.url))
    broker.forget()

    assert len(asked) == 4
    if scheduler == "fixed":
        assert {device_id: axes.format((arm,)) for (device_id, _), arm in asked.items()} == dict(
            zip("ab", ARMS.split(","), strict=True)
        )
    for arm in asked.values():
        axes.check(arm)
        assert 4 <= axes["batch_size"].of(arm) <= 16
    assert len({axes["batch_size"].of(arm) for arm in asked.values()}) > 1
    header, _, *rows = to_csv({RunKey(method="mine", seed=0): report_run(tmp_path)}).splitlines()
    place = {name: header.split(",").index(name) for name in ("device_id", "round_number", "batch_size")}
    cells = [row.split(",") for row in rows]
    found = {(row[place["device_id"]], int(row[place["round_number"]])): row[place["batch_size"]] for row in cells}
    assert found == {key: str(int(axes["batch_size"].of(arm))) for key, arm in asked.items()}
    page = re.sub(r"\s+", " ", (tmp_path / REPORT_PAGE).read_text())
    assert "Arms: pruning ratio, rank and batch size of each device" in page
