from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bounds import limits
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import BlobRef, Chunk

BLOBS = st.binary(min_size=1, max_size=500)
SIZES = st.integers(1, 64)


@given(BLOBS, SIZES, st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_repeated_make_the_blob(blob: bytes, size: int, rng: st.DataObject) -> None:
    ref = chunks.describe(blob, size)
    pieces = list(chunks.cut(blob, ref))
    pieces += pieces[: len(pieces) // 2]
    rng.shuffle(pieces)  # type: ignore[attr-defined]
    assembly = chunks.Assembly(ref)
    for piece in pieces:
        assembly.add(piece)
    assert assembly.is_complete
    assert assembly.missing == ()
    assert assembly.blob() == blob


@given(BLOBS, SIZES, st.data())
def test_what_was_not_added_is_missing(blob: bytes, size: int, data: st.DataObject) -> None:
    ref = chunks.describe(blob, size)
    lost = data.draw(st.sets(st.integers(0, ref.num_chunks - 1), min_size=1))
    assembly = chunks.Assembly(ref)
    for piece in chunks.cut(blob, ref, (i for i in range(ref.num_chunks) if i not in lost)):
        assembly.add(piece)
    assert assembly.missing == tuple(sorted(lost))
    assert [assembly.has(i) for i in sorted(lost)] == [False] * len(lost)
    with pytest.raises(MessageError, match=f"lacks {len(lost)} chunks"):
        assembly.blob()


@given(BLOBS, SIZES, st.data())
def test_a_changed_byte_is_noticed_and_everything_is_asked_for_again(
    blob: bytes, size: int, data: st.DataObject
) -> None:
    ref = chunks.describe(blob, size)
    position = data.draw(st.integers(0, len(blob) - 1))
    broken = blob[:position] + bytes([blob[position] ^ 0xFF]) + blob[position + 1 :]
    assembly = chunks.Assembly(ref)
    for piece in chunks.cut(broken, ref):
        assembly.add(piece)
    with pytest.raises(MessageError, match="corrupted"):
        assembly.blob()
    assert len(assembly.missing) == ref.num_chunks
    for piece in chunks.cut(blob, ref):
        assembly.add(piece)
    assert assembly.blob() == blob


@pytest.mark.parametrize(
    ("index", "payload", "expected"),
    [
        (0, b"123", "is 3 bytes, expected 4"),
        (0, b"12345", "is 5 bytes, expected 4"),
        (2, b"1234", "is 4 bytes, expected 2"),
        (3, b"1234", "of a blob of 3 chunks"),
        (-1, b"1234", "of a blob of 3 chunks"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(index: int, payload: bytes, expected: str) -> None:
    ref = chunks.describe(b"0123456789", 4)
    with pytest.raises(MessageError, match=expected):
        chunks.Assembly(ref).add(Chunk(digest=ref.digest, index=index, payload=payload))


def test_a_chunk_of_another_blob_is_refused() -> None:
    ref = chunks.describe(b"0123456789", 4)
    with pytest.raises(MessageError, match="where"):
        chunks.Assembly(ref).add(Chunk(digest=digest_of(b"other"), index=0, payload=b"0123"))


@pytest.mark.parametrize("index", [-1, 3])
def test_chunks_outside_the_blob_cannot_be_cut(index: int) -> None:
    blob = b"0123456789"
    with pytest.raises(MessageError, match="3 chunks"):
        list(chunks.cut(blob, chunks.describe(blob, 4), [index]))


def test_a_request_never_lists_more_than_the_limit() -> None:
    ref = BlobRef(digest="ab" * 32, size_bytes=limits.MAX_CHUNK_INDICES + 5, chunk_bytes=1)
    assert len(chunks.Assembly(ref).missing) == limits.MAX_CHUNK_INDICES
