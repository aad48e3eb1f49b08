"""Brokers in processes of their own, and coordinators in threads."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_server.config import CONFIG_FILE, CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.services import fleets
from broker_server.serving.services.broker import SYSTEM_FOLDERS
from edge_runtime.link.protocol import OpenLink
from tests.broker_server.links import InProcess, is_in_process, open_link

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Broker:
    """``run_broker`` in a process of its own, that can be killed and started again on its port."""

    def __init__(self, kind: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://{HOST}:{self.port}"
        self._script = (
            "from broker_server.serving.services.broker import run_broker;"
            f"run_broker(host={HOST!r}, port={self.port}, kind={kind!r})"
        )
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-c", self._script], stdout=log, stderr=log)
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            time.sleep(0.05)
        pytest.fail(f"broker does not listen: {self._log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def start_broker(kind: str, folder: Path) -> Iterator[Broker]:
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS])
    if kind == "mosquitto" and shutil.which("mosquitto", path=path) is None:
        pytest.skip("mosquitto is not installed")
    broker = Broker(kind, folder / f"{kind}.log")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(params=["mosquitto", "amqtt"])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """Each kind of broker in turn."""
    yield from start_broker(request.param, tmp_path)


@pytest.fixture
def broker() -> Iterator[InProcess]:
    """A broker inside this process: what is looked at is the coordinator."""
    one = InProcess()
    yield one
    one.forget()


@pytest.fixture
def real_broker(tmp_path: Path) -> Iterator[Broker]:
    """The broker that this machine has: where connections, processes or the broker itself are looked at."""
    kind = "mosquitto" if shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") else "amqtt"
    yield from start_broker(kind, tmp_path)


def link_to_broker_of(run_dir: Path) -> OpenLink | None:
    """To the broker inside this process that a run's configuration names; None where it names a real one."""
    try:
        url = CoordinatorConfig.load(run_dir / CONFIG_FILE).broker_url
    except ConfigError:
        return None
    return open_link(url) if is_in_process(url) else None


class Coordination(threading.Thread):
    """``run_coordinator`` in a thread; keeps how it ended."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self._run_dir = run_dir
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            run_coordinator(self._run_dir, link_to_broker_of(self._run_dir))
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            self.error = error

    def finish(self, timeout_s: float = 60.0) -> None:
        """Wait for the end, and raise what the coordinator raised."""
        self.join(timeout_s)
        assert not self.is_alive(), "the coordinator did not finish"
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _short_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinators in these tests share a broker with nobody, so an objection need not be waited for long."""
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)


@pytest.fixture
def coordinate() -> Callable[[Path], Coordination]:
    """A function that starts a coordinator on a run directory."""

    def start(run_dir: Path) -> Coordination:
        thread = Coordination(run_dir)
        thread.start()
        return thread

    return start
