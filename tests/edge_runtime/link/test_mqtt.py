from __future__ import annotations

import queue
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.errors import ExitCode, MessageError
from edge_runtime.link import connection
from edge_runtime.link.errors import BrokerRefusedError, BrokerUnreachableError
from edge_runtime.link.inbox import EVENT_BYTES, Inbox
from edge_runtime.link.mqtt import (
    Connected,
    Disconnected,
    Received,
)
from tests.edge_runtime.link.links import Jitter, MakeLink, next_event
from tests.waiting import wait_until


def test_a_message_arrives_at_every_subscriber(broker: Any, make_link: MakeLink) -> None:
    sender, receiver = make_link(broker.url, "a"), make_link(broker.url, "b")
    sender.connect()
    receiver.connect()
    sender.publish("t/x", b"hello")
    assert next_event(receiver, Received) == Received("t/x", b"hello")


def test_mqtt_5_is_used_where_the_broker_speaks_it(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    assert next_event(link, Connected) == Connected("MQTT 5")


def test_mqtt_3_is_used_where_the_broker_has_nothing_else(amqtt: Any, make_link: MakeLink) -> None:
    link = make_link(amqtt.url)
    link.connect()
    assert next_event(link, Connected) == Connected("MQTT 3.1.1")


def test_reconnects_after_the_broker_was_killed(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    next_event(link, Connected)
    mosquitto.kill()
    next_event(link, Disconnected)
    mosquitto.start()
    next_event(link, Connected)
    link.publish("t/again", b"1")
    assert next_event(link, Received).topic == "t/again"


def test_delays_grow_to_a_cap_with_full_jitter(mosquitto: Any, make_link: MakeLink) -> None:
    jitter = Jitter()
    link = make_link(mosquitto.url, rng=jitter)
    link.connect()
    mosquitto.kill()
    deadline = time.monotonic() + 20
    while len(jitter.bounds) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [low for low, _ in jitter.bounds[:9]] == [0.0] * 9
    assert [high for _, high in jitter.bounds[:9]] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_message_of_another_thread_is_unconfirmed_until_it_has_its_number(
    broker: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, may_go_on = paho.Client.publish, threading.Event()

    def slow_for_one(self: paho.Client, topic: str, *arguments: Any, **options: Any) -> paho.MQTTMessageInfo:
        if topic == "t/slow":
            assert may_go_on.wait(20)
        return publish(self, topic, *arguments, **options)

    monkeypatch.setattr(paho.Client, "publish", slow_for_one)
    link = make_link(broker.url)
    link.connect()
    other = threading.Thread(target=link.publish, args=("t/slow", b"1"))
    other.start()
    wait_until(lambda: not link.is_all_confirmed)

    link.publish("t/fast", b"2")

    assert next_event(link, Received).topic == "t/fast"
    assert not link.is_all_confirmed
    may_go_on.set()
    other.join()
    wait_until(lambda: link.is_all_confirmed)


def test_nothing_published_while_offline_is_queued(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    mosquitto.kill()
    next_event(link, Disconnected)
    link.publish("t/lost", b"1")
    mosquitto.start()
    next_event(link, Connected)
    link.publish("t/kept", b"2")
    assert next_event(link, Received) == Received("t/kept", b"2")
    assert link.num_dropped_out == 1


def test_more_than_the_limit_under_way_is_dropped(
    mosquitto: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_QUEUED_BYTES", 3000)
    link = make_link(mosquitto.url, subscriptions=("other",))
    link.connect()
    for _ in range(200):
        link.publish("t/x", bytes(1000))
    assert link.num_dropped_out > 0
    assert link.bytes_sent == (200 - link.num_dropped_out) * 1000


def test_a_link_says_that_it_has_room_before_it_drops(
    mosquitto: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_QUEUED_BYTES", 100_000)
    link = make_link(mosquitto.url, subscriptions=("other",))
    assert not link.has_room, "there is no connection"
    link.connect()
    num_sent, deadline = 0, time.monotonic() + 30
    while num_sent < 2000 and time.monotonic() < deadline:
        if link.has_room:
            link.publish("t/x", bytes(4000))
            num_sent += 1
        else:
            time.sleep(0.001)
    assert num_sent == 2000
    assert link.num_dropped_out == 0
    mosquitto.kill()
    next_event(link, Disconnected)
    assert not link.has_room


def test_confirmed_messages_make_room_again(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    for _ in range(50):
        link.publish("t/x", bytes(1000))
        next_event(link, Received)
    deadline = time.monotonic() + 10
    while link._connection is not None and link._connection._unconfirmed_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link._connection is not None
    assert link._connection._unconfirmed_bytes == 0


def test_a_payload_over_the_limit_is_refused(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    with pytest.raises(MessageError, match="4097 bytes, at most 4096"):
        link.publish("t/x", bytes(4097))


def test_an_oversized_message_is_dropped_and_counted(amqtt: Any, make_link: MakeLink) -> None:
    big, small = make_link(amqtt.url, "big", max_message_bytes=9000), make_link(amqtt.url, "small")
    big.connect()
    small.connect()
    big.publish("t/x", bytes(5000))
    big.publish("t/x", b"fits")
    assert next_event(small, Received).payload == b"fits"
    assert (small.num_oversized_in, small.largest_message_bytes, small.bytes_received) == (1, 4, 5004)


def test_counters_count_payloads(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url)
    link.connect()
    link.publish("t/x", bytes(100))
    link.publish("t/x", bytes(50))
    next_event(link, Received)
    next_event(link, Received)
    assert (link.bytes_sent, link.bytes_received, link.largest_message_bytes) == (150, 150, 100)


def test_the_will_is_published_when_a_process_dies(broker: Any, make_link: MakeLink) -> None:
    watcher, dying = make_link(broker.url, "watcher"), make_link(broker.url, "dying", will=("t/gone", b"dead"))
    watcher.connect()
    dying.connect()
    assert dying._connection is not None
    sock: Any = dying._connection._client.socket()
    dying._closing.set()
    sock.shutdown(socket.SHUT_RDWR)
    assert next_event(watcher, Received) == Received("t/gone", b"dead")


def test_a_clean_close_says_good_bye_and_leaves_no_will(broker: Any, make_link: MakeLink) -> None:
    watcher, leaving = make_link(broker.url, "watcher"), make_link(broker.url, "leaving", will=("t/gone", b"dead"))
    watcher.connect()
    leaving.connect()
    leaving.close(goodbye=("t/bye", b"bye"))
    watcher.publish("t/after", b"")
    assert [next_event(watcher, Received).topic for _ in range(2)] == ["t/bye", "t/after"]
    assert not leaving.is_connected


def test_close_while_the_broker_is_away_does_not_hang(mosquitto: Any, make_link: MakeLink) -> None:
    link = make_link(mosquitto.url, rng=random.Random(0))
    link.connect()
    mosquitto.kill()
    next_event(link, Disconnected)
    started = time.monotonic()
    link.close(goodbye=("t/bye", b"bye"))
    assert time.monotonic() - started < 5
    assert not link._keeper.is_alive()


def test_nobody_listening_is_unreachable(make_link: MakeLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BrokerUnreachableError, match=f"127.0.0.1:{port} is unreachable") as caught:
        make_link(f"mqtt://127.0.0.1:{port}").connect()
    assert caught.value.exit_code == ExitCode.BROKER_UNREACHABLE


def test_a_server_that_never_answers_is_unreachable(make_link: MakeLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BrokerUnreachableError, match="did not answer MQTT"):
            make_link(url, connect_timeout_s=0.3).connect()


def test_a_server_that_hangs_up_is_unreachable(make_link: MakeLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            for _ in range(2):
                server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(BrokerUnreachableError, match=r"closed the connection|unreachable"):
            make_link(f"mqtt://127.0.0.1:{server.getsockname()[1]}").connect()
        thread.join()


def test_waiting_for_the_broker_connects_when_it_comes(mosquitto: Any, make_link: MakeLink) -> None:
    mosquitto.kill()
    link = make_link(mosquitto.url)
    link.connect(wait_for_broker=True)
    assert not link.is_connected
    mosquitto.start()
    next_event(link, Connected)


def test_a_wrong_password_is_refused(start_mosquitto: Any, make_link: MakeLink, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    broker = start_mosquitto("listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {passwords}")
    with pytest.raises(BrokerRefusedError, match="Not authorized; user 'lab'") as caught:
        make_link(f"mqtt://lab:secret@127.0.0.1:{broker.port}").connect()
    assert caught.value.exit_code == ExitCode.BROKER_REFUSED
    assert "secret" not in str(caught.value)


def test_a_broker_with_a_small_packet_limit_is_refused(start_mosquitto: Any, make_link: MakeLink) -> None:
    broker = start_mosquitto("listener {port} 127.0.0.1", "allow_anonymous true", "max_packet_size 2000")
    with pytest.raises(BrokerRefusedError, match="at most 2000 bytes"):
        make_link(broker.url).connect()


def test_websockets_work(websocket_broker: Any, make_link: MakeLink) -> None:
    link = make_link(f"ws://127.0.0.1:{websocket_broker.port}")
    link.connect()
    link.publish("t/x", b"1")
    assert next_event(link, Received).payload == b"1"


def test_no_events_are_lost_when_the_owner_is_slow(
    mosquitto: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message without a place stays with the broker, which goes on when there is one; nothing comes twice."""
    slow = make_link(mosquitto.url, "slow")
    monkeypatch.setattr(slow, "events", Inbox(max_bytes=3 * (EVENT_BYTES + 10)))
    slow.connect()
    sender = make_link(mosquitto.url, "sender", subscriptions=("other",))
    sender.connect()
    for index in range(200):
        sender.publish("t/x", str(index).encode())
    wait_until(lambda: slow.events.qsize() >= 1 + 3)
    time.sleep(0.3)
    assert slow.events.qsize() == 1 + 3
    assert [int(next_event(slow, Received).payload) for _ in range(200)] == list(range(200))


def test_pings_go_on_while_the_owner_is_busy(
    mosquitto: Any, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More arrives than there is room for, and nobody reads for longer than the broker waits for a ping."""
    monkeypatch.setattr(connection, "KEEPALIVE_S", 2)
    busy = make_link(mosquitto.url, "busy")
    monkeypatch.setattr(busy, "events", Inbox(max_bytes=20 * EVENT_BYTES))
    busy.connect()
    sender = make_link(mosquitto.url, "sender", subscriptions=("other",))
    sender.connect()
    for index in range(300):
        sender.publish("t/x", str(index).encode())
    time.sleep(4.5)
    assert [int(next_event(busy, Received).payload) for _ in range(300)] == list(range(300))
    with pytest.raises(queue.Empty):
        next_event(busy, Disconnected, timeout_s=0.1)
    assert busy.is_connected


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_what_was_retained_is_dropped(mosquitto: Any, make_link: MakeLink, protocol: MQTTProtocolVersion) -> None:
    sender = make_link(mosquitto.url, "sender", subscriptions=("other",))
    sender.connect()
    assert sender._connection is not None
    sender._connection._client.publish("t/old", b"old", qos=1, retain=True).wait_for_publish(5)
    reader = make_link(mosquitto.url, "reader")
    reader._protocols = [protocol]
    reader.connect()
    sender.publish("t/new", b"new")
    assert next_event(reader, Received) == Received("t/new", b"new")
