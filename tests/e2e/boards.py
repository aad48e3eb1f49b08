"""A run whose parts are started by themselves, as docs/server.md has it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker_server.config import CoordinatorConfig
from broker_server.serving.storage.events import EventReader, RoundFinished
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.formats.manifest import digest_of
from tests.e2e.rows import WORDS, write_rows

ROOT = Path(__file__).resolve().parents[2]
SERVER = [sys.executable, "-m", "broker_server"]
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


def export_artifact(model: Path, out: Path) -> None:
    """Export a model for the classes of :mod:`tests.e2e.rows`."""
    labels = [option for label in WORDS for option in ("--label", label)]
    command = [*SERVER, "export", str(model), "--task", "text-classification", *labels, "-o", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)


def make_run_dir(root: Path, artifact: Path, **changes: Any) -> Path:
    """A run directory with the document's own config.toml for two devices, but for ports and ``changes``."""
    digest = digest_of((artifact / "manifest.json").read_bytes())
    (root / "artifacts").mkdir(parents=True)
    shutil.copytree(artifact, root / "artifacts" / digest)
    write_rows(root / "test.jsonl", 20, seed=9)
    document = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    [sample] = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    config = dataclasses.replace(
        CoordinatorConfig.from_toml(sample),
        broker_url=f"mqtt://127.0.0.1:{free_port()}",
        artifact_url=f"http://127.0.0.1:{free_port()}/",
        artifact_digest=digest,
        num_threads=1,
        base_model=None,
        **changes,
    )
    (root / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    return root


def play(run_dir: Path, logs: Path, devices: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> list[int]:
    """Broker, artifact server, coordinator and devices, until the run is over.

    Args:
        run_dir: see :func:`make_run_dir`.
        logs: folder of logs, data and state directories.
        devices: by name, the command that ``start`` is given to, and further options.

    Returns:
        Exit codes of the coordinator and the devices; fewer where one did not end in time.
    """
    config = CoordinatorConfig.load(run_dir / "config.toml")
    broker_port, artifact_port = port_of(config.broker_url), port_of(config.artifact_url)
    with contextlib.ExitStack() as stack:

        def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(command, logs / f"{name}.log"))

        start("broker", [*SERVER, "broker", "--port", str(broker_port)])
        start("artifacts", [*SERVER, "artifacts", str(run_dir / "artifacts"), "--port", str(artifact_port)])
        wait_until_listening(broker_port)
        wait_until_listening(artifact_port)
        coordinator = start("coordinate", [*SERVER, "coordinate", str(run_dir)])
        boards = []
        for name, (edge, options) in devices.items():
            data = write_rows(logs / f"{name}.jsonl", 40, seed=len(name))
            command = [*edge, "start", "--broker", config.broker_url, "--device-id", name, "--data", str(data)]
            command += ["--state", str(logs / name), "--threads", "1", "--exit-when-finished", *options]
            boards.append(start(name, command))
        codes = []
        with contextlib.suppress(subprocess.TimeoutExpired):
            codes += [coordinator.wait(TIMEOUT_S)]
            codes += [board.wait(TIMEOUT_S / 4) for board in boards]
    return codes


def said(logs: Path) -> dict[str, str]:
    """Return the output of every process, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in logs.glob("*.log")}


def records_of(run_dir: Path, round_number: int) -> dict[str, DeviceRecord]:
    """The devices' records of a round, by device."""
    events = EventReader(run_dir / "events.jsonl").new_events()
    records = {event.record.round_number: event.record for event in events if isinstance(event, RoundFinished)}
    return {device.device_id: device for device in records[round_number].devices}
