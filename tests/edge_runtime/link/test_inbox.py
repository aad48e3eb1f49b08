"""Messages that wait for the owner of a link: bounded, in order, acknowledged only when there is a place."""

from __future__ import annotations

import queue
import threading

import pytest

from edge_runtime.link.inbox import EVENT_BYTES, Connected, Disconnected, Inbox, Received

PLACES = 3


@pytest.fixture
def inbox() -> Inbox:
    """With room for three messages of ten bytes, and two aside."""
    return Inbox(max_bytes=PLACES * (EVENT_BYTES + 11), max_aside_bytes=2 * (EVENT_BYTES + 11))


def fill(inbox: Inbox, num_messages: int) -> list[int]:
    """Deliver messages numbered from 0; the list of those acknowledged grows while they are read."""
    acknowledged: list[int] = []
    for number in range(num_messages):
        event = Received("t", str(number).encode().rjust(10))
        inbox.deliver(event, lambda number=number: acknowledged.append(number))  # type: ignore[misc]
    return acknowledged


def read(inbox: Inbox) -> int:
    event = inbox.get(0)
    assert isinstance(event, Received)
    return int(event.payload)


def test_what_has_no_place_is_not_acknowledged_and_comes_when_there_is_one(inbox: Inbox) -> None:
    acknowledged = fill(inbox, 5)
    assert acknowledged == [0, 1, 2]
    assert read(inbox) == 0
    assert acknowledged == [0, 1, 2, 3]
    assert [read(inbox) for _ in range(4)] == [1, 2, 3, 4]
    assert acknowledged == [0, 1, 2, 3, 4]
    assert inbox.num_dropped == 0


def test_a_broker_that_does_not_wait_loses_messages_and_memory_stays_bounded(inbox: Inbox) -> None:
    acknowledged = fill(inbox, 1000)
    assert inbox.num_dropped == 1000 - PLACES - 2
    assert sorted({*range(1000)} - {*acknowledged}) == [3, 4]
    assert [read(inbox) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_messages_that_want_no_answer_are_dropped_where_there_is_no_place(inbox: Inbox) -> None:
    fill(inbox, PLACES)
    inbox.deliver(Received("t", b"x"), None)
    assert (inbox.num_dropped, inbox.qsize()) == (1, PLACES)


def test_a_message_larger_than_the_room_passes_alone() -> None:
    inbox = Inbox(max_bytes=10)
    inbox.deliver(Received("t", bytes(1000)), None)
    assert inbox.get(0) == Received("t", bytes(1000))


def test_what_was_set_aside_ends_with_its_connection(inbox: Inbox) -> None:
    acknowledged = fill(inbox, 5)
    inbox.note(Disconnected("cut"))
    assert [read(inbox) for _ in range(PLACES)] == [0, 1, 2]
    assert inbox.get(0) == Disconnected("cut")
    with pytest.raises(queue.Empty):
        inbox.get(0)
    assert acknowledged == [0, 1, 2]


def test_connections_that_come_and_go_unseen_leave_one_event(inbox: Inbox) -> None:
    for number in range(100):
        inbox.note(Disconnected(str(number)))
        inbox.note(Connected("MQTT 5"))
    assert [inbox.get(0) for _ in range(2)] == [Disconnected("99"), Connected("MQTT 5")]
    assert inbox.qsize() == 0


def test_a_reader_wakes_up_when_something_comes(inbox: Inbox) -> None:
    timer = threading.Timer(0.05, inbox.deliver, [Received("t", b"x"), None])
    timer.start()
    assert inbox.get(5) == Received("t", b"x")
    timer.join()
