"""A coordinator tells callbacks of its rounds, and what they raise ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.serving.callbacks import Callback, RunInfo
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import RoundRecord
from tests.broker_server import fleet
from tests.broker_server.conftest import Broker, Coordination
from tests.broker_server.fleet import Device

TOLD: list[object] = []


class Notes(Callback):
    """Notes what it is told, and fails in round 1."""

    def on_run_start(self, run: RunInfo) -> None:
        TOLD.append((run.run_id, run.settings["scheduler"]))

    def on_round_end(self, record: RoundRecord) -> None:
        TOLD.append(record.round_number)
        if record.round_number == 1:
            message = "no space left"
            raise OSError(message)

    def on_run_end(self, report: Report | None) -> None:
        TOLD.append(report)

    def close(self) -> None:
        TOLD.append("closed")


def test_a_fleet_s_callbacks_are_told_of_every_round_and_cannot_end_the_run(
    broker: Broker,
    tmp_path: Path,
    coordinate: Callable[[Path], Coordination],
    caplog: pytest.LogCaptureFixture,
) -> None:
    TOLD.clear()
    fleet.config(tmp_path, broker.url, callbacks=f"{__name__}:Notes", method="fedit")
    with caplog.at_level(logging.WARNING):
        running = coordinate(tmp_path)
        with Device(broker.url, "a"), Device(broker.url, "b"):
            running.finish()

    assert TOLD == [("run-1", "fixed"), 0, 1, 2, None, "closed"]
    assert "callback Notes failed; the run goes on (OSError: no space left)" in caplog.messages
    resolved = CoordinatorConfig.load(tmp_path / "resolved.toml")
    assert resolved == CoordinatorConfig.load(tmp_path / "config.toml")
    assert 'aggregation = "fedspine"' in (tmp_path / "resolved.toml").read_text()


def test_an_unknown_callback_ends_the_coordinator_before_it_does_anything(tmp_path: Path) -> None:
    fleet.config(tmp_path, "mqtt://127.0.0.1:1", callbacks="tensorbord")

    with pytest.raises(ConfigError, match="callback 'tensorbord' is not known; did you mean 'tensorboard'"):
        run_coordinator(tmp_path)
    assert not (tmp_path / "state.sqlite").exists()
