"""kill -9 while a device trains: what it does next, beside the same training undisturbed. And a board that gets hot."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from broker_server.config import CoordinatorConfig
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.storage.events import EventReader
from broker_server.serving.storage.store import Store
from edge_runtime.wire.messages import Update
from edge_runtime.wire.work import Arm
from tests.e2e.boards import SERVER, free_port, port_of, running, wait_until_listening
from tests.e2e.rows import write_rows
from tests.e2e.test_boards import EDGE, run_dir

pytestmark = pytest.mark.e2e

__all__ = ["run_dir"]

TIMEOUT_S = 120.0
NUM_STEPS = 400
EVERY = 20
STEP = re.compile(r"DEBUG step (\d+) of 400: loss (\S+)")


class Fleet:
    """Servers of one run, and its only device, which may be started more than once."""

    def __init__(self, root: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        self.root, self._folder, self._stack = root, folder, stack
        self.config = dataclasses.replace(
            CoordinatorConfig.load(root / "config.toml"),
            broker_url=f"mqtt://127.0.0.1:{free_port()}",
            artifact_url=f"http://127.0.0.1:{free_port()}/",
            num_devices=1,
            arms=(Arm(pruning_ratio=0.5, rank=4),),
            rejoin_s=TIMEOUT_S,
            training=TrainingConfig(
                num_rounds=1, num_local_steps=NUM_STEPS, batch_size=4, max_length=16, num_accumulation_steps=2
            ),
            pruning=PruningConfig(importance="lora", importance_every_steps=15, ramp_rounds=1, recovery_steps=100),
        )
        (root / "config.toml").write_text(self.config.to_toml(), encoding="utf-8")
        broker_port, artifact_port = port_of(self.config.broker_url), port_of(self.config.artifact_url)
        self.start("broker", [*SERVER, "broker", "--port", str(broker_port)])
        self.start("artifacts", [*SERVER, "artifacts", str(root / "artifacts"), "--port", str(artifact_port)])
        wait_until_listening(broker_port)
        wait_until_listening(artifact_port)
        self.coordinator = self.start("coordinate", [*SERVER, "coordinate", str(root)])

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        return self._stack.enter_context(running(command, self._folder / f"{name}.log"))

    def device(self, turn: int, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
        """The device, started for the ``turn``-th time, and its log."""
        data = self._folder / "attic.jsonl"
        command = [*EDGE, "start", "--broker", self.config.broker_url, "--device-id", "attic", "--data", str(data)]
        command += ["--state", str(self._folder / "attic"), "--threads", "1", "--exit-when-finished"]
        command += ["--checkpoint-every", str(EVERY), "--log-level", "debug", *options]
        name = f"attic-{turn}"
        return self.start(name, command), self._folder / f"{name}.log"

    def finish(self, device: subprocess.Popen[bytes]) -> Update:
        """Wait for the end of the run; the one update, which was accepted."""
        codes = [self.coordinator.wait(TIMEOUT_S), device.wait(TIMEOUT_S)]
        assert codes == [0, 0], {path.name: path.read_text(encoding="utf-8") for path in self._folder.glob("*.log")}
        with contextlib.closing(Store.open(self.root)) as store:
            (update,) = store.load_updates(1)
        return update


@pytest.fixture
def make_fleet(run_dir: Path, tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Fleet:
            folder = tmp_path / name
            root = Path(shutil.copytree(run_dir, folder / "run"))
            write_rows(folder / "attic.jsonl", 60, seed=3)
            return Fleet(root, folder, stack)

        yield make


def trajectory(log: Path) -> dict[int, str]:
    """Loss by step, to the last digit."""
    return {int(step): loss for step, loss in STEP.findall(log.read_text(encoding="utf-8"))}


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up_at:
        if what():
            return
        assert process.poll() is None
        time.sleep(0.01)
    pytest.fail("it did not happen")


def test_a_killed_device_goes_on_with_the_losses_of_an_undisturbed_one(make_fleet: Callable[[str], Fleet]) -> None:
    """Killed after the first pruning and after the third: same losses, same update to the bit, few steps lost."""
    calm = make_fleet("calm")
    device, log = calm.device(1)
    expected_update = calm.finish(device)
    expected = trajectory(log)
    assert sorted(expected) == list(range(1, NUM_STEPS + 1))

    cut = make_fleet("cut")
    pieces: list[dict[int, str]] = []
    for turn, until in enumerate((130, 330), start=1):
        device, log = cut.device(turn)
        wait_for(lambda log=log, until=until: max(trajectory(log), default=0) >= until, device)  # type: ignore[misc]
        device.kill()
        device.wait()
        pieces.append(trajectory(log))
    device, log = cut.device(3)
    update = cut.finish(device)
    pieces.append(trajectory(log))

    for piece in pieces:
        assert piece == {step: expected[step] for step in piece}
    assert set().union(*pieces) == set(expected)
    for before, after in itertools.pairwise(pieces):
        assert 1 < min(after) <= max(before) + 1
        assert max(before) - (min(after) - 1) <= EVERY
    assert update.train_loss == expected_update.train_loss
    assert update.evaluation == expected_update.evaluation
    mine, theirs = ((fleet.root / "updates" / "1" / "attic.safetensors").read_bytes() for fleet in (cut, calm))
    assert mine == theirs
    assert any(name.startswith("importance/") for name in load_file(cut.root / "updates" / "1" / "attic.safetensors"))
    assert list((log.parent / "attic" / "checkpoint").iterdir()) == []


def test_a_hot_board_pauses_says_so_and_goes_on(make_fleet: Callable[[str], Fleet], tmp_path: Path) -> None:
    zone = tmp_path / "sys" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("71000\n")
    fleet = make_fleet("hot")
    device, log = fleet.device(1, "--sensors", str(tmp_path / "sys"), "--max-temperature", "70")
    wait_for(lambda: "paused: hotter than 70 C" in log.read_text(encoding="utf-8"), device)
    time.sleep(1.5)
    events = EventReader(fleet.root / "events.jsonl")
    wait_for(lambda: any("paused: hotter" in getattr(event, "detail", "") for event in events.new_events()), device)
    assert trajectory(log) == {}
    (zone / "temp").write_text("64000\n")
    update = fleet.finish(device)
    assert update.measurements.paused_s >= 1.5
    assert "paused for" in log.read_text(encoding="utf-8")


def test_a_paused_board_still_stops_when_told(make_fleet: Callable[[str], Fleet], tmp_path: Path) -> None:
    battery = tmp_path / "sys" / "class" / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    for name, text in {"type": "Battery", "capacity": "12", "status": "Discharging"}.items():
        (battery / name).write_text(f"{text}\n")
    fleet = make_fleet("low")
    device, log = fleet.device(1, "--sensors", str(tmp_path / "sys"), "--min-battery", "30")
    wait_for(lambda: "paused: battery below 30 %, goes on at 35 %" in log.read_text(encoding="utf-8"), device)
    told_at = time.monotonic()
    device.send_signal(signal.SIGTERM)
    assert device.wait(TIMEOUT_S) == 0
    assert time.monotonic() - told_at < 15
