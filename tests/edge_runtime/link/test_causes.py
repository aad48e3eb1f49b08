"""A broker's answers to CONNECT, in words that say what to do."""

from __future__ import annotations

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.errors import ExitCode
from edge_runtime.link import causes
from edge_runtime.link.address import BrokerAddress

ADDRESS = BrokerAddress.parse("mqtt://lab:secret@127.0.0.1:1883")


@pytest.mark.parametrize(
    ("answer", "step"),
    [
        ("Client identifier not valid", "shorten --fleet and --device-id"),
        ("Quota exceeded", "max_connections"),
        ("Packet too large", "max_packet_size"),
        ("Server moved", "address of the other one"),
        ("Bad user name or password", "check user name and password"),
        ("Banned", "ACL"),
    ],
)
def test_a_refusal_names_what_to_change(answer: str, step: str) -> None:
    error = causes.of_answer(ADDRESS, "fedspine:lab:a", ReasonCode(PacketTypes.CONNACK, answer))
    assert error.exit_code == ExitCode.BROKER_REFUSED
    assert answer in str(error)
    assert step in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("answer", ["Server unavailable", "Server busy", "Connection rate exceeded"])
def test_what_may_pass_is_not_called_a_refusal(answer: str) -> None:
    error = causes.of_answer(ADDRESS, "fedspine:lab:a", ReasonCode(PacketTypes.CONNACK, answer))
    assert error.exit_code == ExitCode.BROKER_UNREACHABLE
    assert "try again later" in str(error)
