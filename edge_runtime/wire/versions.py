"""Peers of other releases: errors and messages that name both schema versions and the peer to upgrade."""

from __future__ import annotations

import msgspec

from edge_runtime.bounds.fields import Name, Version
from edge_runtime.errors import MessageError


class SchemaVersionError(MessageError):
    """A message has another schema version.

    Attributes:
        theirs: version of the message.
        ours: version of this release, the only one that is read.
    """

    def __init__(self, message: str, *, theirs: int, ours: int) -> None:
        super().__init__(message)
        self.theirs = theirs
        self.ours = ours


class _Head(msgspec.Struct, frozen=True):
    kind: Name
    schema_version: Version


_decoder = msgspec.msgpack.Decoder(_Head)


def check_version(data: bytes, ours: int) -> None:
    """Raise for a message of another schema version; return for other malformed messages.

    Args:
        data: the bytes that could not be decoded.
        ours: the schema version of this release.

    Raises:
        SchemaVersionError: the message has another schema version.
    """
    try:
        head = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if head.schema_version == ours:
        return
    side = "the side that sent it" if head.schema_version < ours else "this side"
    msg = (
        f"{head.kind} refused: it has schema_version {head.schema_version}, but this release of fedspine speaks "
        f"{ours}: upgrade fedspine on {side}"
    )
    raise SchemaVersionError(msg, theirs=head.schema_version, ours=ours)


def word_to(error: SchemaVersionError) -> bytes:
    """Return a message for a peer of another release; the text for its owner is in the kind of the message.

    Every release refuses a message of an unknown kind, and logs this kind with the reason.
    """
    side = "this device" if error.theirs < error.ours else "the coordinator"
    text = (
        f"this coordinator speaks schema_version {error.ours}, this device {error.theirs}: upgrade fedspine on {side}"
    )
    return msgspec.msgpack.encode({"kind": text, "schema_version": error.theirs})
