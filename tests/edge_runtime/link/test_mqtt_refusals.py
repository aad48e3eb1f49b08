"""A broker that takes a client in and then says no: which message, how large; it is not the fault of the network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.link import endings, mqtt
from edge_runtime.link.mqtt import Connected, Disconnected, Received
from tests.edge_runtime.link.links import MakeLink, next_event
from tests.waiting import wait_until

OPEN = ("listener {port} 127.0.0.1", "allow_anonymous true")


def test_a_message_that_an_acl_forbids_is_named(start_mosquitto: Any, make_link: MakeLink, tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o700)
    link = make_link(start_mosquitto(*OPEN, f"acl_file {acl}").url)
    link.connect()
    link.publish("t/x", bytes(77))
    wait_until(lambda: link.num_refused == 1)
    assert "refused 77 bytes on t/x (Not authorized)" in link.last_refusal
    assert link.is_connected


def test_a_message_over_the_broker_s_size_is_named(start_mosquitto: Any, make_link: MakeLink) -> None:
    """CONNECT tells the limit of packets, not that of payloads: mosquitto 2.0 answers with what is not MQTT."""
    link = make_link(start_mosquitto(*OPEN, "message_size_limit 1000").url)
    link.connect()
    link.publish("t/x", bytes(999))
    assert len(next_event(link, Received).payload) == 999
    link.publish("t/x", bytes(1001))
    assert "at a message of 1001 bytes on t/x" in next_event(link, Disconnected).reason


def test_the_same_cut_at_a_message_is_not_called_a_fault_of_the_network(
    start_mosquitto: Any, make_link: MakeLink
) -> None:
    """MQTT 3.1.1 has no words for it: only that it happens at the same message, again and again."""
    link = make_link(start_mosquitto(*OPEN, "max_packet_size 2000").url)
    link._protocols = [MQTTProtocolVersion.MQTTv311]
    link.connect()
    for _ in range(3):
        next_event(link, Connected)
        link.publish("t/chunk", bytes(4000))
        reason = next_event(link, Disconnected).reason
    assert "ended 3 times in a row at a message of 4000 bytes on t/chunk" in reason


def test_two_clients_of_one_name_are_both_told_and_do_not_go_on_for_ever(
    mosquitto: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """mosquitto 2.0 just ends the connection of the one that was there; under another name it would last."""
    monkeypatch.setattr(endings, "TURNS_S", (0.1, 60.0))
    monkeypatch.setattr(endings, "STABLE_S", 1.0)
    monkeypatch.setattr(mqtt, "STABLE_S", 1.0)
    links = [make_link(mosquitto.url, "kitchen-pi") for _ in range(2)]
    for link in links:
        link.connect()
    told = "another client connects as 'kitchen-pi' and takes the place of this one"
    wait_until(lambda: caplog.text.count(f"under another name the connection lasts: {told}") >= 3)
    assert "give one of them another --device-id" in caplog.text

    def is_quiet() -> bool:
        num_lost = caplog.text.count("lost: ")
        time.sleep(2.0)
        return caplog.text.count("lost: ") == num_lost

    wait_until(is_quiet)
    assert sum(link.is_connected for link in links) <= 1


def test_a_name_that_another_uses_is_suspected_where_the_broker_has_no_words(
    mosquitto: Any, make_link: MakeLink
) -> None:
    """MQTT 3.1.1 just closes the connection of the one that was there."""
    links = [make_link(mosquitto.url, "kitchen-pi") for _ in range(2)]
    for link in links:
        link._protocols = [MQTTProtocolVersion.MQTTv311]
        link.connect()
    reasons = [next_event(links[0], Disconnected).reason for _ in range(3)]
    assert "another machine may use this name (--device-id" in reasons[-1]


def test_what_the_socket_said_is_kept(mosquitto: Any, make_link: MakeLink) -> None:
    """paho passes on no more than "Unspecified error"."""
    link = make_link(mosquitto.url)
    link.connect()
    mosquitto.kill()
    reason = next_event(link, Disconnected).reason
    assert "Unspecified" not in reason
    assert "closed by the other side" in reason or "reset" in reason
