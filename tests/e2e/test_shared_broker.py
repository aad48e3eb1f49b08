"""Two ``fedspine run`` at once on one broker: neither hears the other's devices."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from broker_server.experiments.run.preparation import free_port
from broker_server.experiments.run.settings import RunSettings
from broker_server.serving.services.broker import find_mosquitto
from broker_server.serving.storage.events import RoundStarted, Started
from broker_server.serving.storage.schema import devices
from broker_server.serving.storage.store import Store
from edge_runtime.errors import ExitCode
from tests.e2e.processes import Run, mosquitto, wait_for_event, wait_for_port
from tests.e2e.rows import write_rows

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")]


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    """A mosquitto that both runs use."""
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", *(["user root"] if os.geteuid() == 0 else [])]
    with mosquitto(str(find_mosquitto()), tmp_path, "\n".join(lines) + "\n"):
        wait_for_port(port)
        yield f"mqtt://127.0.0.1:{port}"


def test_each_run_has_the_updates_of_its_own_devices_and_no_others(
    broker_url: str, prepared_classifier: Path, classify_settings: RunSettings, tmp_path: Path
) -> None:
    """Both have a ``device-1`` and a ``device-2``; only how many examples these have tells them apart."""
    (artifact,) = (prepared_classifier / "artifacts").iterdir()
    roots = {}
    for name, num_devices, num_rows in (("one", 2, 60), ("two", 3, 120)):
        data = write_rows(tmp_path / f"{name}.jsonl", num_rows, seed=num_rows)
        settings = dataclasses.replace(
            classify_settings,
            artifact=str(artifact),
            broker=broker_url,
            data=str(data),
            num_devices=num_devices,
            compact=False,
        )
        (tmp_path / f"{name}.toml").write_text(settings.to_toml())
        roots[name] = (tmp_path / name, num_devices, num_rows // num_devices)

    with (
        Run("--config", str(tmp_path / "one.toml"), "--out", str(tmp_path / "one")) as first,
        Run("--config", str(tmp_path / "two.toml"), "--out", str(tmp_path / "two")) as second,
    ):
        assert (first.wait(), second.wait()) == (0, 0), (first.errors, second.errors)

    fleets = set()
    for root, num_devices, num_examples in roots.values():
        fleets.add(tomllib.loads((root / "config.toml").read_text())["fleet"])
        own = {f"device-{number}" for number in range(1, num_devices + 1)}
        store = Store.open(root)
        for round_number in (1, 2):
            updates = store.load_updates(round_number)
            assert {update.key.device_id for update in updates} == own
            assert len(updates) == num_devices
            assert all(num_examples // 2 < update.num_examples <= num_examples for update in updates)
        registered = store._query(sa.select(devices.c.device_id, devices.c.register))
        assert {row.device_id for row in registered} == own
        assert {json.loads(row.register)["num_examples"] for row in registered} == {num_examples}
        for name in own:
            log = (root / "logs" / f"{name}.log").read_text()
            assert log.count("connected to") == 1, log
    assert len(fleets) == 2


def test_a_fleet_that_another_run_has_is_refused_and_that_one_goes_on(
    broker_url: str, prepared_classifier: Path, classify_settings: RunSettings, tmp_path: Path
) -> None:
    """At once where it can be known, else before any of its devices begins: these have the names of the other's."""
    (artifact,) = (prepared_classifier / "artifacts").iterdir()
    settings = dataclasses.replace(
        classify_settings, artifact=str(artifact), broker=broker_url, compact=False, fleet_name="lab"
    )
    (tmp_path / "lab.toml").write_text(settings.to_toml())
    options = ("--config", str(tmp_path / "lab.toml"), "--out")
    with Run(*options, str(tmp_path / "one")) as first:
        wait_for_event(tmp_path / "one", lambda event: isinstance(event, Started), first)  # it has the fleet
        with Run(*options, str(tmp_path / "two")) as second:
            wait_for_event(tmp_path / "one", lambda event: isinstance(event, RoundStarted), first)
            held = first.child("start", "device-3")
            held.suspend()  # so that the round stays open
            code = second.wait()
            held.resume()
        assert code == ExitCode.FLEET_IN_USE
        assert "fleet 'lab' has a coordinator already" in second.errors
        assert not (tmp_path / "two").exists()
        assert first.wait() == 0, first.errors
    for log in (tmp_path / "one" / "logs").glob("device-*.log"):
        assert log.read_text().count("connected to") == 1
