"""A link inside the process does what one over MQTT does; and what only the former can be asked for."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime.errors import MessageError
from edge_runtime.link.connection import RECEIVE_MAXIMUM
from edge_runtime.link.errors import BrokerUnreachableError
from edge_runtime.link.in_process import InProcessBroker, InProcessLink
from edge_runtime.link.inbox import Connected, Disconnected, Inbox, Received
from edge_runtime.link.mqtt import BrokerAddress, MqttLink
from edge_runtime.link.protocol import Link
from edge_runtime.link.reflex import Reflex
from tests.edge_runtime.link.links import Jitter, next_event
from tests.waiting import wait_until


class Site:
    """A broker of one kind, and links to it."""

    def __init__(self, broker: Any, open_link: Any) -> None:
        self.kill, self.start = getattr(broker, "kill", None) or broker.stop, broker.start
        self._open_link = open_link
        self.links: list[Link] = []

    def link(self, client_id: str, *subscriptions: str, **options: Any) -> Any:
        settings = {"will": None, "max_message_bytes": 4096, "rng": Jitter(), **options}
        link = self._open_link(client_id=client_id, subscriptions=subscriptions, **settings)
        self.links.append(link)
        return link

    def connected(self, client_id: str, *subscriptions: str, **options: Any) -> Any:
        link = self.link(client_id, *subscriptions, **options)
        link.connect()
        assert isinstance(link.events.get(timeout=20), Connected)
        return link


@pytest.fixture(params=["mqtt", "in-process"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "mqtt":
        broker: Any = request.getfixturevalue("mosquitto")

        def open_link(**options: Any) -> Link:
            return MqttLink(BrokerAddress.parse(broker.url), **options)

        one = Site(broker, open_link)
    else:
        inside = InProcessBroker()
        one = Site(inside, inside.open_link)
    yield one
    for link in one.links:
        link.close()


@pytest.fixture
def inside() -> InProcessBroker:
    return InProcessBroker()


def open_inside(broker: InProcessBroker, client_id: str, *subscriptions: str, **options: Any) -> InProcessLink:
    settings: dict[str, Any] = {"will": None, "max_message_bytes": 4096, **options}
    link = broker.open_link(client_id=client_id, subscriptions=subscriptions, **settings)
    link.connect()
    assert link.events.get_nowait() == Connected("in-process")
    return link


def topics_until(link: Link, last: str) -> list[str]:
    """Topics of what arrives, up to ``last``."""
    seen: list[str] = []
    while last not in seen:
        seen.append(next_event(link, Received).topic)  # type: ignore[arg-type]
    return seen


# ---- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "fitting", "others"),
    [
        ("f/up/+/+", ["f/up/a/update", "f/up/b/status"], ["f/up/a", "f/up/a/b/c", "g/up/a/update", "f/down/a/update"]),
        ("f/down/a/+", ["f/down/a/hello"], ["f/down/b/hello", "f/down/a"]),
        ("f/all/+", ["f/all/hello"], ["f/all", "f/al/hello"]),
        ("f/#", ["f", "f/x", "f/x/y"], ["g", "ff"]),
        ("#", ["f", "f/x/y"], []),
        ("f/x", ["f/x"], ["f/y", "f/x/", "f"]),
    ],
)
def test_topic_filters_match_as_in_mqtt(site: Site, one: str, fitting: list[str], others: list[str]) -> None:
    link, sender = site.connected("reader", one, "the/end"), site.connected("sender")
    for topic in (*others, *fitting, "the/end"):
        sender.publish(topic, b"x")
    assert topics_until(link, "the/end") == [*fitting, "the/end"]


def test_messages_of_one_sender_keep_their_order_however_many(site: Site) -> None:
    link, sender = site.connected("reader", "t/#"), site.connected("sender")
    for number in range(5 * RECEIVE_MAXIMUM):
        sender.publish("t/x", str(number).encode())
    assert [int(next_event(link, Received).payload) for _ in range(5 * RECEIVE_MAXIMUM)] == list(
        range(5 * RECEIVE_MAXIMUM)
    )


def test_limits_and_counts(site: Site) -> None:
    link, sender = site.connected("reader", "t/#"), site.connected("sender", max_message_bytes=9000)
    with pytest.raises(MessageError, match="4097 bytes, at most 4096"):
        link.publish("t/x", bytes(4097))
    sender.publish("t/x", bytes(4090))
    assert next_event(link, Received).payload == bytes(4090)
    assert (sender.bytes_sent, link.bytes_received, link.largest_message_bytes) == (4090, 4090, 4090)
    wait_until(lambda: sender.is_all_confirmed)


def test_nothing_published_while_the_broker_is_away_is_queued(site: Site) -> None:
    link = site.connected("a", "t/#")
    site.kill()
    assert isinstance(link.events.get(timeout=20), Disconnected)
    assert not link.is_connected
    link.publish("t/lost", b"1")
    site.start()
    assert isinstance(next_event(link, Connected), Connected)
    link.publish("t/kept", b"2")
    assert next_event(link, Received) == Received("t/kept", b"2")
    assert link.num_dropped_out == 1


def test_a_clean_close_says_good_bye_and_leaves_no_will(site: Site) -> None:
    watcher, leaving = site.connected("watcher", "t/#"), site.connected("leaving", will=("t/will", b"dead"))
    leaving.close(("t/bye", b"bye"))
    watcher.publish("t/end", b"")
    assert topics_until(watcher, "t/end") == ["t/bye", "t/end"]
    assert not leaving.is_connected


def test_a_second_client_of_a_name_throws_out_the_first_whose_will_is_published(site: Site) -> None:
    watcher = site.connected("watcher", "t/#")
    first = site.connected("same", will=("t/will", b"dead"))
    site.connected("same")
    assert isinstance(next_event(first, Disconnected), Disconnected)
    assert next_event(watcher, Received) == Received("t/will", b"dead")


def test_a_reflex_greets_after_connecting_and_answers_by_itself(site: Site) -> None:
    def link(name: str) -> Any:
        answers = {b"who?": f"me, {name}".encode()}
        reflex = Reflex(topic="t/who", greet=f"here is {name}".encode, hear=answers.get)
        return site.connected(name, reflex=reflex)

    watcher = site.connected("watcher", "t/#")
    answering = link("a")
    assert next_event(watcher, Received).payload == b"here is a"
    watcher.publish("t/who", b"who?")
    assert [next_event(watcher, Received).payload for _ in range(2)] == [b"who?", b"me, a"]
    with pytest.raises(queue.Empty):
        answering.events.get(timeout=0.05)


def test_waiting_for_the_broker_connects_when_it_comes(site: Site) -> None:
    site.kill()
    link = site.link("a", "t/#")
    link.connect(wait_for_broker=True)
    assert not link.is_connected
    site.start()
    assert isinstance(next_event(link, Connected), Connected)
    assert link.is_connected


def test_a_broker_that_is_away_is_unreachable(site: Site) -> None:
    site.kill()
    with pytest.raises(BrokerUnreachableError):
        site.link("a").connect()


# ---- inside the process alone ----------------------------------------------------------------------------------------


def test_a_broken_connection_publishes_the_will_and_comes_back_when_told(inside: InProcessBroker) -> None:
    watcher = open_inside(inside, "watcher", "t/#")
    link = open_inside(inside, "a", "t/#", will=("t/will", b"dead"))
    link.break_connection("cable cut")
    assert link.events.get_nowait() == Disconnected("cable cut")
    assert watcher.events.get_nowait() == Received("t/will", b"dead")
    link.publish("t/lost", b"")
    watcher.publish("t/unheard", b"")
    link.restore()
    assert link.events.get_nowait() == Connected("in-process")
    with pytest.raises(queue.Empty):
        link.events.get_nowait()
    assert link.num_dropped_out == 1


def test_a_closed_link_stays_closed(inside: InProcessBroker) -> None:
    link = open_inside(inside, "a")
    link.close()
    link.restore()
    inside.stop()
    inside.start()
    assert not link.is_connected


def full_inbox(link: InProcessLink) -> None:
    """Let the owner of a link have room for a message at a time."""
    link.events = Inbox(max_bytes=1, max_aside_bytes=10**6)


def test_what_the_owner_has_no_room_for_stays_with_the_broker_up_to_its_limit() -> None:
    broker = InProcessBroker(max_queued_messages=100)
    link, sender = open_inside(broker, "slow", "t/#"), open_inside(broker, "sender")
    full_inbox(link)
    num_kept = 1 + RECEIVE_MAXIMUM + 100
    for number in range(num_kept + 3):
        sender.publish("t/x", str(number).encode())
    assert broker.num_dropped == 3
    got = []
    with contextlib.suppress(queue.Empty):
        while True:
            got.append(link.events.get_nowait())
    assert got == [Received("t/x", str(number).encode()) for number in range(num_kept)]


def test_what_was_under_way_dies_with_the_connection_and_old_acknowledgements_do_not_count(
    inside: InProcessBroker,
) -> None:
    link, sender = open_inside(inside, "slow", "t/#"), open_inside(inside, "sender")
    full_inbox(link)
    for number in range(3 * RECEIVE_MAXIMUM):
        sender.publish("t/x", str(number).encode())
    link.break_connection()
    link.restore()
    assert [type(link.events.get_nowait()) for _ in range(3)] == [Received, Disconnected, Connected]
    for number in range(3 * RECEIVE_MAXIMUM):
        sender.publish("t/y", str(number).encode())
    for number in range(3 * RECEIVE_MAXIMUM):
        assert link.events.get_nowait() == Received("t/y", str(number).encode())


def test_one_thread_is_told_which_of_many_links_has_something(inside: InProcessBroker) -> None:
    told: list[str] = []
    links = []
    for number in range(300):
        name = f"d{number}"
        links.append(open_inside(inside, name, f"to/{name}", "all", on_event=lambda name=name: told.append(name)))
    assert len(told) == 300
    told.clear()
    sender = open_inside(inside, "sender")
    sender.publish("to/d7", b"x")
    assert told == ["d7"]
    sender.publish("all", b"x")
    assert told[1:] == [f"d{number}" for number in range(300)]
    links[7].break_connection()
    assert told[301:] == ["d7"]


def test_a_filter_that_mqtt_forbids_is_refused(inside: InProcessBroker) -> None:
    with pytest.raises(MessageError, match=r"'t/#/x' is not allowed"):
        inside.open_link(client_id="a", subscriptions=("t/#/x",), will=None, max_message_bytes=1)
