"""Real brokers on free loopback ports: mosquitto (MQTT 5) and amqtt (3.1.1 only)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.edge_runtime.small_manifest import manifest  # noqa: F401 - a fixture

settings.register_profile("busy-machine", deadline=None)  # a test may share its cores with a whole run
settings.load_profile("busy-machine")

AMQTT_SCRIPT = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listener = {"type": sys.argv[2], "bind": f"127.0.0.1:{sys.argv[1]}"}
    await Broker({"listeners": {"default": listener}, "plugins": plugins}).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclasses.dataclass
class BrokerProcess:
    """A broker in a process of its own, that can be killed and started again on the same port."""

    command: list[str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"broker did not start: {self.log.read_text()}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


StartBroker = Callable[..., BrokerProcess]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def mosquitto_path() -> str:
    path = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        pytest.skip("mosquitto is not installed")
    return path


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[StartBroker]:
    """Start mosquitto with lines of configuration; ``{port}`` in them is a free port."""
    started: list[BrokerProcess] = []

    def start(*lines: str) -> BrokerProcess:
        port = free_port()
        config = tmp_path / f"mosquitto-{port}.conf"
        chosen = lines or ("listener {port} 127.0.0.1", "allow_anonymous true")
        config.write_text("\n".join(line.format(port=port) for line in ("user root", *chosen)) + "\n")
        broker = BrokerProcess([mosquitto_path(), "-c", str(config)], port, tmp_path / f"mosquitto-{port}.log")
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.kill()


@pytest.fixture
def mosquitto(start_mosquitto: StartBroker) -> BrokerProcess:
    return start_mosquitto()


def run_amqtt(tmp_path: Path, kind: str) -> Iterator[BrokerProcess]:
    pytest.importorskip("amqtt")
    port = free_port()
    broker = BrokerProcess([sys.executable, "-c", AMQTT_SCRIPT, str(port), kind], port, tmp_path / "amqtt.log")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def amqtt(tmp_path: Path) -> Iterator[BrokerProcess]:
    yield from run_amqtt(tmp_path, "tcp")


@pytest.fixture
def websocket_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """amqtt behind a websocket; mosquitto is not always built with them."""
    yield from run_amqtt(tmp_path, "ws")


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each kind of broker in turn."""
    process: BrokerProcess = request.getfixturevalue(request.param)
    return process
