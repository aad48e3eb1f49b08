"""Honest boards among hostile clients, with the real broker, servers and boards: the run ends well, within bounds."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from broker_server.config import CoordinatorConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.services.broker import find_mosquitto
from edge_runtime.system.interpreter import module_command
from tests.e2e import hostile
from tests.e2e.boards import make_run_dir, port_of, records_of, running, said, wait_until_listening
from tests.e2e.rows import write_rows
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

logger = logging.getLogger(__name__)

NUM_ROUNDS: Final = 5
HONEST: Final = ("attic", "barn", "cellar")
VICTIM: Final = "barn"
MAX_RSS_BYTES: Final = 250_000_000
"""Of the coordinator: 117 MB were seen, most of it the libraries."""
MAX_DISK_BYTES: Final = 10_000_000
"""Largest growth of the run directory in five rounds: 0.7 MB of adapters, updates, store and event log were seen."""
TIMEOUT_S: Final = 400.0
ATTACKERS: Final[dict[str, hostile.Make]] = {
    "liar": hostile.Liar,
    "flooder": hostile.Flooder,
    "ghosts": hostile.Ghosts,
    "registrar": hostile.Registrar,
    "announcer": hostile.Announcer,
    "dripper-1": hostile.Dripper,
    "dripper-2": hostile.Dripper,
    "dripper-3": hostile.Dripper,
    "hog": hostile.Hog,
    "babbler": hostile.Babbler,
}


class PeakMemory(threading.Thread):
    """Largest resident set of a process, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.num_bytes = 0

    def run(self) -> None:
        """Until the process has ended."""
        with contextlib.suppress(psutil.Error):
            while True:
                self.num_bytes = max(self.num_bytes, self._process.memory_info().rss)
                time.sleep(0.1)


def size_of(directory: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@contextlib.contextmanager
def attacked(config: CoordinatorConfig, port: int) -> Iterator[list[hostile.Attacker]]:
    """All attackers at work."""
    with hostile.bad_artifacts() as url:
        attackers = [make(config, port, name) for name, make in ATTACKERS.items()]
        attackers.append(hostile.Forger(config, port, "forger", victim=VICTIM, url=url))
        for attacker in attackers:
            attacker.start()
        try:
            yield attackers
        finally:
            for attacker in attackers:
                attacker.stop()


def test_honest_boards_count_in_every_round_among_attackers(rows_artifact: Path, tmp_path: Path) -> None:
    run_dir = make_run_dir(
        tmp_path / "run",
        rows_artifact,
        training=TrainingConfig(num_rounds=NUM_ROUNDS, num_local_steps=2, batch_size=4, max_length=16),
        round_deadline_s=10.0,
        registration_timeout_s=10.0,  # all that come within ten seconds take part in the first round
        num_devices=1000,
    )
    config = CoordinatorConfig.load(run_dir / "config.toml")
    broker_port, artifact_port = port_of(config.broker_url), port_of(config.artifact_url)
    size_before = size_of(run_dir)
    with contextlib.ExitStack() as stack:

        def start(name: str, *command: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(list(command), tmp_path / f"{name}.log"))

        start("broker", *module_command("broker_server", "broker", "--port", str(broker_port)))
        served = str(run_dir / "artifacts")
        start("artifacts", *module_command("broker_server", "artifacts", served, "--port", str(artifact_port)))
        wait_until_listening(broker_port)
        wait_until_listening(artifact_port)
        stack.enter_context(hostile.half_open(artifact_port, 300))
        boards = []
        for number, name in enumerate(HONEST):
            data = write_rows(tmp_path / f"{name}.jsonl", 40, seed=number)
            options = ["--broker", config.broker_url, "--device-id", name, "--data", str(data), "--threads", "1"]
            options += ["--state", str(tmp_path / name), "--exit-when-finished"]
            boards.append(start(name, *module_command("edge_runtime", "start", *options)))
        wait_until(lambda: all("connected to" in said(tmp_path)[name] for name in HONEST), TIMEOUT_S)
        coordinator = start("coordinate", *module_command("broker_server", "coordinate", str(run_dir)))
        memory = PeakMemory(coordinator.pid)
        memory.start()
        attackers = stack.enter_context(attacked(config, broker_port))
        code = coordinator.wait(TIMEOUT_S)
        board_codes = [board.wait(60) for board in boards]
        num_sent = {attacker.device_id: attacker.num_sent for attacker in attackers}

    assert code == 0, said(tmp_path)["coordinate"][-4000:]
    outcomes = [
        {name: record.outcome for name, record in records_of(run_dir, number).items() if name in HONEST}
        for number in range(1, NUM_ROUNDS + 1)
    ]
    assert outcomes == [dict.fromkeys(HONEST, "accepted")] * NUM_ROUNDS, said(tmp_path)[VICTIM][-4000:]
    hostile_outcomes = {
        record.outcome
        for number in range(1, NUM_ROUNDS + 1)
        for name, record in records_of(run_dir, number).items()
        if name not in HONEST
    }
    assert "accepted" not in hostile_outcomes
    assert all(count > 1 for count in num_sent.values()), num_sent
    assert board_codes == [0, 0, 0]
    num_disk_bytes = size_of(run_dir) - size_before
    logger.info("peak RSS %.0f MB, disk %.2f MB, %s messages", memory.num_bytes / 1e6, num_disk_bytes / 1e6, num_sent)
    assert memory.num_bytes < MAX_RSS_BYTES
    assert num_disk_bytes < MAX_DISK_BYTES
    assert "\x1b" not in said(tmp_path)["coordinate"]
