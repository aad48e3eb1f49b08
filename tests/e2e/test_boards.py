"""The parts by themselves, as docs/server.md starts them; with FEDSPINE_EDGE, devices of another installation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_server.config import CoordinatorConfig, TrainingConfig
from broker_server.storage.events import EventReader, RoundFinished
from edge_runtime.wire.manifest import digest_of
from tests.e2e.rows import WORDS, write_rows

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SERVER = [sys.executable, "-m", "broker_server"]
EDGE = [os.environ["FEDSPINE_EDGE"]] if "FEDSPINE_EDGE" in os.environ else [sys.executable, "-m", "edge_runtime"]
TIMEOUT_S = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def port_of(url: str) -> int:
    port = urllib.parse.urlsplit(url).port
    assert port is not None
    return port


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the test."""
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_listening(port: int) -> None:
    give_up_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail(f"nobody listens on port {port}")


@pytest.fixture
def run_dir(tiny_bert_model: Path, tmp_path: Path) -> Path:
    """A run directory as docs/server.md has it, with the document's own config.toml for two devices and one round."""
    root = tmp_path / "my-run"
    artifact = tmp_path / "artifact"
    labels = [option for label in WORDS for option in ("--label", label)]
    command = [*SERVER, "export", str(tiny_bert_model), "--task", "text-classification", *labels, "-o", str(artifact)]
    subprocess.run(command, cwd=ROOT, check=True)
    digest = digest_of((artifact / "manifest.json").read_bytes())
    (root / "artifacts").mkdir(parents=True)
    artifact.rename(root / "artifacts" / digest)
    write_rows(root / "test.jsonl", 20, seed=9)
    document = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    [sample] = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    config = dataclasses.replace(
        CoordinatorConfig.from_toml(sample),
        broker_url=f"mqtt://127.0.0.1:{free_port()}",
        artifact_url=f"http://127.0.0.1:{free_port()}/",
        artifact_digest=digest,
        num_threads=1,
        training=TrainingConfig(num_rounds=1, num_local_steps=2, batch_size=4, max_length=16),
    )
    (root / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    return root


def test_two_boards_and_a_server_finish_a_round(run_dir: Path, tmp_path: Path) -> None:
    config = CoordinatorConfig.load(run_dir / "config.toml")
    broker_port, artifact_port = port_of(config.broker_url), port_of(config.artifact_url)
    with contextlib.ExitStack() as stack:

        def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(command, tmp_path / f"{name}.log"))

        start("broker", [*SERVER, "broker", "--port", str(broker_port)])
        start("artifacts", [*SERVER, "artifacts", str(run_dir / "artifacts"), "--port", str(artifact_port)])
        wait_until_listening(broker_port)
        wait_until_listening(artifact_port)
        coordinator = start("coordinate", [*SERVER, "coordinate", str(run_dir)])
        devices = []
        for name in ("attic", "cellar"):
            data = write_rows(tmp_path / f"{name}.jsonl", 40, seed=len(name))
            command = [*EDGE, "start", "--broker", config.broker_url, "--device-id", name, "--data", str(data)]
            command += ["--state", str(tmp_path / name), "--threads", "1", "--exit-when-finished"]
            devices.append(start(name, command))
        codes = []
        with contextlib.suppress(subprocess.TimeoutExpired):
            codes += [coordinator.wait(TIMEOUT_S)]
            codes += [device.wait(TIMEOUT_S / 4) for device in devices]
    assert codes == [0, 0, 0], {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log")}
    events = EventReader(run_dir / "events.jsonl").new_events()
    records = {event.record.round_number: event.record for event in events if isinstance(event, RoundFinished)}
    assert {(device.device_id, device.outcome) for device in records[1].devices} == {
        ("attic", "accepted"),
        ("cellar", "accepted"),
    }
    assert (run_dir / "adapters" / "round-0001.safetensors").is_file()
