from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import MessageError
from edge_runtime.wire import topics

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT's rule for ``+`` (section 4.7 of the specification)."""
    wanted, got = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(got) and all(w in {"+", g} for w, g in zip(wanted, got, strict=True))


@given(NAMES, NAMES, NAMES)
def test_the_sender_of_an_up_topic_is_its_device(fleet: str, device_id: str, kind: str) -> None:
    assert topics.sender(topics.up(fleet, device_id, kind)) == device_id


@given(NAMES, NAMES)
def test_the_coordinator_reads_every_device(fleet: str, device_id: str) -> None:
    (subscription,) = topics.coordinator_subscriptions(fleet)
    assert matches(subscription, topics.up(fleet, device_id, "update"))


@given(NAMES, NAMES, NAMES)
def test_a_device_reads_its_own_and_what_is_for_all(fleet: str, device_id: str, other: str) -> None:
    subscriptions = topics.device_subscriptions(fleet, device_id)
    read = [
        any(matches(s, topic) for s in subscriptions)
        for topic in (
            topics.down(fleet, device_id, "welcome"),
            topics.to_all(fleet, "hello"),
            topics.down(fleet, other, "welcome"),
            topics.up(fleet, device_id, "status"),
        )
    ]
    assert read == [True, True, other == device_id, False]


@pytest.mark.parametrize("name", ["", "+", "#", "a/b", "-a", ".a", "a b", "a" * 65, "ä", "a\n", "$x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(MessageError, match="not allowed"):
        topics.up("lab", name, "status")
    with pytest.raises(MessageError, match="not allowed"):
        topics.to_all(name, "hello")


@pytest.mark.parametrize(
    "topic",
    ["", "a/b", "fedspine/v1/lab/down/x/status", "fedspine/v2/lab/up/x/status", "fedspine/v1/lab/up/x/y/z", "x" * 9999],
)
def test_other_topics_have_no_sender(topic: str) -> None:
    with pytest.raises(MessageError):
        topics.sender(topic)
