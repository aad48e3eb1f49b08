"""Blobs in chunks: the sender cuts them, the receiver joins them and checks the digest. This module does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from edge_runtime.bounds import limits
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.wire.messages import BlobRef, Chunk


def describe(blob: bytes, chunk_bytes: int = limits.CHUNK_BYTES) -> BlobRef:
    """Header of a blob."""
    return BlobRef(digest=digest_of(blob), size_bytes=len(blob), chunk_bytes=chunk_bytes)


def cut_file(path: Path, ref: BlobRef, indices: Iterable[int]) -> Iterator[Chunk]:
    """Chunks of a blob in a file; only the requested chunks are read.

    Raises:
        MessageError: an index is outside the blob, or the file is shorter than the header says.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for index in indices:
            size = _size_of(ref, index)
            file.seek(index * ref.chunk_bytes)
            payload = file.read(size)
            if len(payload) != size:
                msg = f"{path} ends within chunk {index}: it is not the blob of {ref.size_bytes} bytes that it was"
                raise MessageError(msg, digest=ref.digest)
            yield Chunk(digest=ref.digest, index=index, payload=payload)


def _size_of(ref: BlobRef, index: int) -> int:
    if not 0 <= index < ref.num_chunks:
        msg = f"chunk {index} asked of a blob of {ref.num_chunks} chunks"
        raise MessageError(msg, digest=ref.digest)
    return min(ref.chunk_bytes, ref.size_bytes - index * ref.chunk_bytes)


def cut(blob: bytes, ref: BlobRef, indices: Iterable[int] | None = None) -> Iterator[Chunk]:
    """The chunks of a blob, all or only ``indices``.

    Raises:
        MessageError: an index is outside the blob.
    """
    for index in range(ref.num_chunks) if indices is None else indices:
        start = index * ref.chunk_bytes
        yield Chunk(digest=ref.digest, index=index, payload=blob[start : start + _size_of(ref, index)])


class Assembly:
    """Collects the chunks of one blob, in any order, duplicates ignored; memory is bounded by the header's size."""

    def __init__(self, ref: BlobRef) -> None:
        self.ref = ref
        self._parts: dict[int, bytes] = {}

    def add(self, chunk: Chunk) -> None:
        """Take one chunk.

        Raises:
            MessageError: the chunk belongs to another blob, is outside the blob, or has a wrong length.
        """
        if chunk.digest != self.ref.digest:
            msg = f"chunk of blob {chunk.digest[:12]} where {self.ref.digest[:12]} was expected"
            raise MessageError(msg, digest=chunk.digest)
        if not 0 <= chunk.index < self.ref.num_chunks:
            msg = f"chunk {chunk.index} of a blob of {self.ref.num_chunks} chunks"
            raise MessageError(msg, digest=chunk.digest)
        expected = _size_of(self.ref, chunk.index)
        if len(chunk.payload) != expected:
            msg = f"chunk {chunk.index} is {len(chunk.payload)} bytes, expected {expected}"
            raise MessageError(msg, digest=chunk.digest)
        self._parts[chunk.index] = chunk.payload

    def has(self, index: int) -> bool:
        """Return whether a chunk is here."""
        return index in self._parts

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices not yet received, ascending, at most MAX_CHUNK_INDICES of them."""
        lacking = (i for i in range(self.ref.num_chunks) if i not in self._parts)
        return tuple(i for i, _ in zip(lacking, range(limits.MAX_CHUNK_INDICES), strict=False))

    @property
    def is_complete(self) -> bool:
        """Return whether every chunk is here."""
        return len(self._parts) == self.ref.num_chunks

    def blob(self) -> bytes:
        """The whole blob, after a check of its digest; after a mismatch all chunks are dropped and requested again.

        Raises:
            MessageError: chunks are missing, or the digest differs.
        """
        if not self.is_complete:
            msg = f"blob {self.ref.digest[:12]} lacks {self.ref.num_chunks - len(self._parts)} chunks"
            raise MessageError(msg, digest=self.ref.digest)
        data = b"".join(self._parts[i] for i in range(self.ref.num_chunks))
        if digest_of(data) != self.ref.digest:
            self._parts.clear()
            msg = f"blob {self.ref.digest[:12]} arrived corrupted; it is asked for again"
            raise MessageError(msg, digest=self.ref.digest)
        return data
