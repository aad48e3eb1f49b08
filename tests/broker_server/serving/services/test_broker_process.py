"""The embedded broker: found or refused, on a port that is free, with the protocol's limits."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_server.errors import ConfigError, MissingExtraError, PortTakenError
from broker_server.serving.services import broker
from broker_server.serving.services.broker import find_broker, find_mosquitto, mosquitto_config, run_broker
from broker_server.serving.services.ports import check_port, is_loopback
from edge_runtime.bounds import limits
from edge_runtime.errors import ExitCode
from edge_runtime.link.mqtt import BrokerAddress, MqttLink, Received

HOST = "127.0.0.1"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_port_in_use_has_its_own_exit_code(taken_port: int, kind: str) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with pytest.raises(PortTakenError, match=f"port {taken_port} on 127.0.0.1 is in use") as caught:
        run_broker(host=HOST, port=taken_port, kind=kind)
    assert caught.value.exit_code is ExitCode.PORT_TAKEN


@pytest.mark.parametrize("port", [0, 65_536, -1])
def test_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 65535"):
        check_port(HOST, port)


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="address of this machine"):
        check_port("192.0.2.1", 1883)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - refused
def test_amqtt_listens_on_loopback_alone(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {host}: amqtt .* install mosquitto for boards"):
        run_broker(host=host, port=free_port(), kind="amqtt")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("192.0.2.1", False)],
)
def test_loopback_is_known_by_address_and_name(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert not is_loopback("no-such-host.invalid")


def test_free_port_stays_free() -> None:
    port = free_port()
    check_port(HOST, port)
    check_port(HOST, port)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, mosquitto or amqtt"):
        find_broker("rabbitmq")


def test_auto_takes_amqtt_where_there_is_no_mosquitto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_broker() == "amqtt"
    with pytest.raises(MissingExtraError, match="not installed"):
        find_broker("mosquitto")


def test_auto_prefers_mosquitto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_broker() == "mosquitto"


def test_configuration_listens_where_it_was_told_and_keeps_nothing() -> None:
    lines = mosquitto_config(HOST, 1999).splitlines()
    assert "listener 1999 127.0.0.1" in lines
    assert "persistence false" in lines
    assert f"message_size_limit {limits.MAX_MESSAGE_BYTES}" in lines
    assert f"max_queued_messages {broker.MAX_QUEUED_MESSAGES}" in lines
    assert f"max_queued_bytes {broker.MAX_QUEUED_BYTES}" in lines


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_largest_message_of_the_protocol_passes(kind: str, tmp_path: Path) -> None:
    if kind == "mosquitto" and shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    call = f"run_broker(host={HOST!r}, port={port}, kind={kind!r})"
    script = f"from broker_server.serving.services.broker import run_broker; {call}"
    with (tmp_path / "broker.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log)
    try:
        _wait_for(port)
        assert _echo(port, bytes(limits.MAX_MESSAGE_BYTES)) == limits.MAX_MESSAGE_BYTES
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail("broker does not listen")


def _echo(port: int, payload: bytes) -> int:
    link = MqttLink(
        BrokerAddress.parse(f"mqtt://{HOST}:{port}"),
        client_id="echo",
        subscriptions=["echo"],
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        rng=random.Random(0),
    )
    link.connect()
    try:
        link.publish("echo", payload)
        while True:
            event = link.events.get(timeout=10)
            if isinstance(event, Received):
                return len(event.payload)
    finally:
        link.close()
