"""Bytes of a reply: what its device published of it, whether it was inside the update or came in chunks."""

from __future__ import annotations

import msgspec
import pytest

from broker_server.serving.coordinator.outcomes import reply_bytes
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import AssignmentKey, Chunk, Update, encode_message
from tests.broker_server.fleet import measurements

KEY = AssignmentKey(run_id="run", round_number=3, device_id="a", attempt=1)


def kept(blob: bytes) -> Update:
    """An update as it is kept."""
    return Update(key=KEY, blob=chunks.describe(blob), num_examples=10, train_loss=1.0, measurements=measurements())


@pytest.mark.parametrize("size", [1, 160, 1024])
def test_of_what_was_inside_it_is_the_message(size: int) -> None:
    blob = bytes(size)
    sent = msgspec.structs.replace(kept(blob), blob=None, inline=blob)
    assert reply_bytes(kept(blob)) == len(encode_message(sent))


@pytest.mark.parametrize("size", [1025, 64 * 1024, 200_000])
def test_of_what_came_in_chunks_it_is_the_message_and_they(size: int) -> None:
    update = kept(bytes(size))
    assert update.blob is not None
    size_of_chunk, digest = update.blob.chunk_bytes, update.blob.digest
    pieces = [min(size_of_chunk, size - begin) for begin in range(0, size, size_of_chunk)]
    sent = [Chunk(digest=digest, index=index, payload=bytes(piece)) for index, piece in enumerate(pieces)]
    expected = len(encode_message(update)) + sum(len(encode_message(one)) for one in sent)
    assert abs(reply_bytes(update) - expected) <= 4 * len(sent), "but for how long numbers are written"


def test_of_an_update_that_brings_nothing_it_is_the_message() -> None:
    update = msgspec.structs.replace(kept(b"x"), blob=None)
    assert reply_bytes(update) == len(encode_message(update))
