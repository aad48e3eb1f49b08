"""The script that measures a coordinator with thin devices plays whole rounds and says what a figure needs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from benchmarks import fleet
from broker_server.serving.services.broker import find_mosquitto
from broker_server.serving.storage.store import Store
from tests.benchmarks.script import run_script
from tests.broker_server import tiny


@pytest.mark.e2e
def test_every_thin_device_is_served_in_every_round(tiny_llama_artifact: Path, tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    out = tmp_path / "fleet.json"
    options = ["--devices", "30", "--rounds", "2", "--artifact", str(tiny_llama_artifact), "--json", str(out)]
    done = run_script("fleet", *options)

    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["num_devices"], result["num_rounds"], result["num_accepted"]) == (30, 2, 60)
    assert result["devices"]["accepted"] == 60
    assert len(result["round_s"]) == len(result["updates_per_s_by_round"]) == 2
    assert result["updates_per_s"] > 0
    assert result["coordinator_s_per_update"] > 0
    assert result["coordinator_rss_bytes"] > 10**7
    assert {"date", "command", "processor", "cores", "load"} <= set(result["environment"])
    assert str(tmp_path) not in out.read_text()


def test_two_hundred_devices_and_their_coordinator_share_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_server.serving.services.fleets.LISTEN_S", 0.05)
    artifact = tiny.write_artifact(tmp_path / "artifact").directory
    arguments = ["--devices", "200", "--rounds", "1", "--in-process", "--artifact", str(artifact)]
    result = fleet.play(fleet.parser().parse_args(arguments), tmp_path)

    assert (result["num_devices"], result["num_rounds"], result["num_accepted"]) == (200, 1, 200)
    assert result["devices"]["accepted"] == 200
    assert "connections_lost" not in result["devices"]
    assert result["coordinator_s_per_update"] > 0
    with contextlib.closing(Store.open(tmp_path / "run")) as store:
        (record,) = store.load_round_records()[1:]
    assert [device.outcome for device in record.devices] == ["accepted"] * 200
