"""``fedspine-edge doctor`` at a broker that lets a device in but then does not take its messages."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.board.guard import PauseLimits
from edge_runtime.bounds import limits
from edge_runtime.doctor import broker as question
from edge_runtime.doctor import machine
from edge_runtime.doctor.findings import Finding
from edge_runtime.doctor.setup import Setup
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.mqtt import MqttLink, Received
from edge_runtime.wire import topics
from edge_runtime.wire.messages import Hello, Presence, decode_message, encode_message

OPEN = ("listener {port} 127.0.0.1", "allow_anonymous true")
READS = ("topic read fedspine/v1/lab/down/board-7/#", "topic read fedspine/v1/lab/all/#")

Ask = Callable[..., tuple[Finding, Finding]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Both questions about a broker."""
    monkeypatch.setattr(question, "ANSWER_S", 1.5)

    def look(url: str, **changes: Any) -> tuple[Finding, Finding]:
        given: dict[str, Any] = {
            "data": None,
            "state": None,
            "broker": lambda: BrokerAddress.parse(url),
            "fleet": "lab",
            "device_id": "board-7",
            "is_encrypted": False,
            "tls": TlsFiles(),
            "num_threads": None,
            "memory_limit_bytes": None,
            "nice": 19,
            "pausing": PauseLimits(),
            "sensors": tmp_path / "sys",
            "now": machine.NOT_BEFORE.timestamp() + 1,
        }
        trial = question.try_out(Setup(**given | changes))
        return question.broker(trial), question.fleet(trial)

    return look


@pytest.fixture
def with_acl(start_mosquitto: Any, tmp_path: Path) -> Callable[..., str]:
    def start(*lines: str) -> str:
        acl = tmp_path / "acl"
        acl.write_text("\n".join(lines) + "\n")
        acl.chmod(0o700)
        url: str = start_mosquitto(*OPEN, f"acl_file {acl}").url
        return url

    return start


@pytest.fixture
def only_mqtt_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that has no words for what it does not take."""
    make = MqttLink.__init__

    def make_old(link: MqttLink, *arguments: Any, **options: Any) -> None:
        make(link, *arguments, **options)
        link._protocols = [MQTTProtocolVersion.MQTTv311]

    monkeypatch.setattr(MqttLink, "__init__", make_old)


@pytest.fixture
def coordinated(mosquitto: Any) -> Iterator[str]:
    """URL of a broker on which fleet ``lab`` has somebody who answers as a coordinator does."""
    link = MqttLink(
        BrokerAddress.parse(mosquitto.url),
        client_id="c",
        subscriptions=topics.coordinator_subscriptions("lab"),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        rng=random.Random(0),
    )
    link.connect()

    def answer() -> None:
        while True:
            event = link.events.get()
            if isinstance(event, Received) and event.topic.endswith("/stop"):
                return
            if isinstance(event, Received) and event.topic.endswith("/presence"):
                message = decode_message(event.payload)
                assert isinstance(message, Presence)
                assert message.online
                hello = encode_message(Hello(run_id="run-1", session_id="aa"))
                link.publish(topics.down("lab", message.device_id, "hello"), hello)

    thread = threading.Thread(target=answer)
    thread.start()
    yield mosquitto.url
    link.publish(topics.up("lab", "x", "stop"), b"")
    thread.join(10)
    link.close()


def test_a_broker_gives_the_largest_message_back_and_a_coordinator_answers(coordinated: str, ask: Ask) -> None:
    broker, fleet = ask(coordinated)
    assert (broker.level, fleet.level) == ("ok", "ok"), (broker, fleet)
    assert (
        f"gave a message of {limits.MAX_MESSAGE_BYTES} bytes on fedspine/v1/lab/up/board-7/chunk back" in broker.detail
    )
    assert "'run-1'" in fleet.detail


def test_a_fleet_that_was_mistyped_is_a_warning(coordinated: str, ask: Ask) -> None:
    broker, fleet = ask(coordinated, fleet="lab-2")
    assert (broker.level, fleet.level) == ("ok", "warning")
    assert "no coordinator of fleet 'lab-2'" in fleet.detail
    assert "--fleet" in fleet.next_step


@pytest.mark.parametrize(
    "lines",
    [
        ("topic read #",),
        ("topic write fedspine/v1/lab/up/board-8/#", *READS),
        ("topic write fedspine/v1/lab/up/board-7/register", *READS),
    ],
    ids=["read only", "another device", "one kind of message"],
)
def test_an_acl_that_forbids_to_write_is_found(with_acl: Callable[..., str], ask: Ask, lines: tuple[str, ...]) -> None:
    broker, _ = ask(with_acl(*lines))
    assert (broker.level, broker.exit_code) == ("error", ExitCode.BROKER_REFUSED)
    assert "fedspine/v1/lab/up/board-7/" in broker.detail
    assert "Not authorized" in broker.detail
    assert "ACL" in broker.next_step


def test_the_acl_that_a_device_needs_is_enough(with_acl: Callable[..., str], ask: Ask) -> None:
    """It may not read back what it writes, and a broker of MQTT 5 would say if it could not write."""
    assert ask(with_acl("topic write fedspine/v1/lab/up/board-7/#", *READS))[0].level == "ok"


@pytest.mark.usefixtures("only_mqtt_3")
def test_what_does_not_come_back_is_a_warning_where_a_broker_has_no_words(
    with_acl: Callable[..., str], ask: Ask
) -> None:
    broker, _ = ask(with_acl("topic read #"))
    assert broker.level == "warning"
    assert "did not come back" in broker.detail
    assert "ACL" in broker.next_step


@pytest.mark.parametrize("line", ["message_size_limit 65536", "max_packet_size 65536"])
def test_a_limit_of_sizes_is_found(start_mosquitto: Any, ask: Ask, line: str) -> None:
    broker, _ = ask(start_mosquitto(*OPEN, line).url)
    assert (broker.level, broker.exit_code) == ("error", ExitCode.BROKER_REFUSED)
    assert "65536" in broker.detail or str(limits.MAX_MESSAGE_BYTES) in broker.detail


@pytest.mark.usefixtures("only_mqtt_3")
def test_a_limit_of_packets_is_found_by_the_end_of_the_connection(start_mosquitto: Any, ask: Ask) -> None:
    broker, _ = ask(start_mosquitto(*OPEN, "max_packet_size 65536").url)
    assert (broker.level, broker.exit_code) == ("error", ExitCode.BROKER_REFUSED)
    assert f"ended the connection at a message of {limits.MAX_MESSAGE_BYTES} bytes" in broker.detail


def test_a_device_that_runs_is_not_thrown_out(mosquitto: Any, ask: Ask) -> None:
    link = MqttLink(
        BrokerAddress.parse(mosquitto.url),
        client_id="fedspine:lab:board-7",
        subscriptions=topics.device_subscriptions("lab", "board-7"),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        rng=random.Random(0),
    )
    link.connect()
    assert ask(mosquitto.url)[0].level == "ok"
    assert link.is_connected
    link.close()


@pytest.mark.parametrize("changes", [{"fleet": "lab/#"}, {"device_id": "+"}, {"fleet": "x" * 65}])
def test_a_name_that_no_topic_allows_is_an_error_of_usage(mosquitto: Any, ask: Ask, changes: dict[str, str]) -> None:
    broker, _ = ask(mosquitto.url, **changes)
    assert (broker.level, broker.exit_code) == ("error", ExitCode.USAGE)


def test_the_name_that_the_state_keeps_is_used(mosquitto: Any, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "device-id").write_text("kitchen-pi\n")
    assert "/up/kitchen-pi/" in ask(mosquitto.url, device_id=None, state=tmp_path)[0].detail
    assert "/up/doctor-" in ask(mosquitto.url, device_id=None, state=tmp_path / "absent")[0].detail
