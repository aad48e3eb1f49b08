"""Waiting while the board should rest: at a bounded rate, told, counted, and ended by a stop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_runtime.agent.assignment_runner import Progress
from edge_runtime.agent.pauses import Pauses
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Reading, Sensors
from tests.waiting import wait_until

LIMITS = PauseLimits(max_temperature_c=70.0)


class Counted(Sensors):
    """The real sensors, and how often they were read."""

    num_reads = 0

    def read(self) -> Reading:
        self.num_reads += 1
        return super().read()


def warm(zone: Path, reading: str) -> None:
    """Change a reading in one go, as the kernel does: nobody sees the file empty."""
    aside = zone.with_suffix(".new")
    aside.write_text(f"{reading}\n")
    aside.replace(zone)


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    path = tmp_path / "class" / "thermal" / "thermal_zone0" / "temp"
    path.parent.mkdir(parents=True)
    path.write_text("50000\n")
    return path


def test_sensors_are_read_once_in_a_while_however_often_it_is_asked(tmp_path: Path, zone: Path) -> None:
    assert zone.exists()
    now = [0.0]
    sensors = Counted(tmp_path)
    pauses = Pauses(LIMITS, sensors, look_s=2.0, clock=lambda: now[0])
    for tick in range(1000):
        now[0] = tick * 0.01
        pauses.wait(threading.Event(), Progress())
    assert sensors.num_reads == 5
    assert pauses.paused_s == 0.0


def test_without_limits_sensors_are_never_read(tmp_path: Path) -> None:
    sensors = Counted(tmp_path)
    Pauses(PauseLimits(), sensors).wait(threading.Event(), Progress())
    assert sensors.num_reads == 0


def test_a_pause_is_told_while_it_lasts_and_counted(
    tmp_path: Path, zone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    warm(zone, "71000")
    now, sensors, progress = [100.0], Counted(tmp_path), Progress(detail="as before")
    pauses = Pauses(LIMITS, sensors, look_s=0.01, clock=lambda: now[0])
    worker = threading.Thread(target=pauses.wait, args=(threading.Event(), progress))
    working_at = pauses.working_s()
    worker.start()
    wait_until(lambda: progress.detail == "paused: hotter than 70 C, goes on at 65 C")
    now[0] += 7.0
    warm(zone, "66000")
    num_reads = sensors.num_reads
    wait_until(lambda: sensors.num_reads >= num_reads + 2)  # the second of them began after the change
    assert worker.is_alive()
    warm(zone, "65000")
    worker.join(10)
    assert not worker.is_alive()
    assert progress.detail == "as before"
    assert pauses.paused_s == 7.0
    assert pauses.working_s() == working_at
    assert [record.message.split(" for ")[0] for record in caplog.records] == [
        "paused: hotter than 70 C, goes on at 65 C",
        "paused",
    ]


def test_a_stop_ends_a_pause_at_once(tmp_path: Path, zone: Path) -> None:
    warm(zone, "71000")
    stop = threading.Event()
    pauses, progress = Pauses(LIMITS, Sensors(tmp_path), look_s=60.0), Progress()
    worker = threading.Thread(target=pauses.wait, args=(stop, progress))
    worker.start()
    wait_until(lambda: progress.detail.startswith("paused"))
    stop.set()
    worker.join(5)
    assert not worker.is_alive()
    assert 0 < pauses.paused_s < 5
