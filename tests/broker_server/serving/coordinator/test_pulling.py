"""Devices that pull blobs: each is served in its turn, and only so often."""

from __future__ import annotations

import pytest

from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import Chunk, ChunkRequest
from tests.broker_server.fleet import FLEET
from tests.broker_server.serving.coordinator.channel import QuietChannel


def test_one_request_is_answered_with_each_chunk_once(quiet: QuietChannel) -> None:
    blob = b"x" * 3000
    ref = chunks.describe(blob, 1024)
    quiet.channel.offer(ref, blob)
    quiet.open("a", ChunkRequest(digest=ref.digest, missing=(0,) * 16))
    assert len(quiet.link.published) == 1


def test_blob_is_sent_to_a_device_only_so_often_in_a_time(
    quiet: QuietChannel, caplog: pytest.LogCaptureFixture
) -> None:
    blob = b"x" * (100 * 1024)
    ref = chunks.describe(blob, 1024)
    quiet.channel.offer(ref, blob)
    for _ in range(3000):
        quiet.open("a", ChunkRequest(digest=ref.digest, missing=(0, 1)))
    assert 4 * 100 <= len(quiet.link.published) <= 4 * 100 + 16
    assert len(caplog.records) == 1
    quiet.link.published.clear()
    for first in range(0, 100, 10):
        quiet.open("b", ChunkRequest(digest=ref.digest, missing=tuple(range(first, first + 10))))
    assert len(quiet.link.published) == 100
    quiet.now += 60
    quiet.open("a", ChunkRequest(digest=ref.digest, missing=(5,)))
    assert len(quiet.link.published) == 101


def test_device_of_short_rounds_gets_the_adapter_of_each(quiet: QuietChannel) -> None:
    """Rounds of a second, each with an adapter of its own, which a device pulls once."""
    for number in range(50):
        blob = b"%03d" % number * 1000
        ref = chunks.describe(blob, 1024)
        quiet.channel.offer(ref, blob)
        quiet.link.published.clear()
        quiet.open("a", ChunkRequest(digest=ref.digest, missing=tuple(range(ref.num_chunks))))
        assert len(quiet.link.published) == ref.num_chunks, f"round {number}"
        quiet.channel.withdraw(ref.digest)
        quiet.now += 1


def test_devices_wait_their_turn_while_the_link_is_full(quiet: QuietChannel) -> None:
    """None of what they asked for is dropped, and who asks again neither loses its place nor gets a chunk twice."""
    blob = b"x" * 3000
    ref = chunks.describe(blob, 1024)
    quiet.channel.offer(ref, blob)
    quiet.link.room = 0
    for device_id, missing in (("a", (0, 1)), ("b", (2,)), ("a", (1, 2))):
        quiet.open(device_id, ChunkRequest(digest=ref.digest, missing=missing))
    assert quiet.link.published == []

    quiet.link.room = 1  # full again after the first device was served
    quiet.channel.tick()
    assert quiet.link.topics == [topics.down(FLEET, "a", "chunk")] * 3
    quiet.link.room = 4
    quiet.channel.post()
    assert quiet.link.topics[3:] == [topics.down(FLEET, "b", "chunk")]
    quiet.link.room = 100
    quiet.channel.tick()
    assert [chunk.index for chunk in quiet.link.published if isinstance(chunk, Chunk)] == [0, 1, 2, 2]


def test_nothing_of_a_blob_that_is_offered_no_more_is_sent(quiet: QuietChannel) -> None:
    old, new = b"x" * 1000, b"y" * 1000
    first, second = chunks.describe(old, 1024), chunks.describe(new, 1024)
    quiet.channel.offer(first, old)
    quiet.channel.offer(second, new)
    quiet.link.room = 0
    for ref in (first, second):
        quiet.open("a", ChunkRequest(digest=ref.digest, missing=(0,)))
    quiet.channel.withdraw(first.digest)
    quiet.link.room = 100
    quiet.channel.tick()
    assert [chunk.digest for chunk in quiet.link.published if isinstance(chunk, Chunk)] == [second.digest]
