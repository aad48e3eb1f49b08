from __future__ import annotations

import functools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent.coordinator_channel import SILENCES_S, CoordinatorChannel
from edge_runtime.agent.precheck import Examples
from edge_runtime.link.in_process import InProcessBroker, InProcessLink
from edge_runtime.link.mqtt import BrokerAddress, MqttLink
from edge_runtime.wire.measures import Capabilities

CAPABILITIES = Capabilities(
    architecture="aarch64",
    operating_system="Linux",
    num_cores=4,
    num_threads=4,
    memory_bytes=10**9,
    memory_limit_bytes=10**8,
    versions={},
    matmul_gflops=1.0,
    memory_copy_gb_s=1.0,
)

EXAMPLES = Examples(num_examples=10, num_bytes=1000, num_texts=0)


@pytest.mark.parametrize("mark", [".", "_", "-"])
def test_devices_of_different_fleets_never_share_a_client_id(mark: str) -> None:
    """A broker ends a connection when another one comes with the same client id."""
    open_link = InProcessBroker().open_link
    names = [("lab", f"north{mark}board"), (f"lab{mark}north", "board")]
    links = [
        CoordinatorChannel(open_link, fleet, device, CAPABILITIES, EXAMPLES, random.Random(0)).link
        for fleet, device in names
    ]
    assert len({link.client_id for link in links if isinstance(link, InProcessLink)}) == 2


def channel_to(url: str) -> CoordinatorChannel:
    open_link = functools.partial(MqttLink, BrokerAddress.parse(url))
    return CoordinatorChannel(open_link, "lba", "board", CAPABILITIES, EXAMPLES, random.Random(0))


class Clock:
    """Monotonic seconds of every channel; they pass while the channel has its turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def turn(self, channel: CoordinatorChannel, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            channel.register_if_due()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(CoordinatorChannel, "clock", property(lambda _: lambda: one.now))
    return one


@pytest.fixture
def channel(clock: Clock, mosquitto: Any) -> Iterator[CoordinatorChannel]:
    """Of a device on a broker where nobody coordinates its fleet."""
    assert clock
    one = channel_to(mosquitto.url)
    one.link.connect()
    yield one
    one.link.close()


def silences(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("no coordinator of fleet 'lba' has answered")]


def test_a_fleet_that_nobody_coordinates_is_told_of_ever_more_rarely(
    channel: CoordinatorChannel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.turn(channel, SILENCES_S[0])
    assert silences(caplog) == []
    clock.turn(channel, SILENCES_S[1])
    assert len(silences(caplog)) == 2
    clock.turn(channel, SILENCES_S[2] - SILENCES_S[1] - SILENCES_S[0] - 1)
    assert len(silences(caplog)) == 2
    clock.turn(channel, 2 + 2 * SILENCES_S[2])
    assert len(silences(caplog)) == 5
    assert "check --fleet" in silences(caplog)[0]


def test_an_answer_ends_the_silence_and_a_new_one_counts_from_its_own_beginning(
    channel: CoordinatorChannel, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.turn(channel, SILENCES_S[0] - 1)
    channel.is_registered = True
    clock.turn(channel, 2)
    channel.register_again()
    clock.turn(channel, SILENCES_S[0] - 1)
    assert silences(caplog) == []
    clock.turn(channel, 2)
    assert len(silences(caplog)) == 1


def test_what_the_broker_refused_is_said_with_the_silence(
    clock: Clock, start_mosquitto: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o700)
    broker = start_mosquitto("listener {port} 127.0.0.1", "allow_anonymous true", f"acl_file {acl}")
    channel = channel_to(broker.url)
    channel.link.connect()
    clock.turn(channel, 1)
    give_up_at = time.monotonic() + 20
    while not channel.link.last_refusal:
        assert time.monotonic() < give_up_at, "the broker did not refuse it"
        time.sleep(0.01)
    clock.turn(channel, SILENCES_S[0])
    channel.link.close()
    assert "bytes on fedspine/v1/lba/up/board/register (Not authorized)" in silences(caplog)[0]
