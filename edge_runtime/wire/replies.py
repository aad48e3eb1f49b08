"""Malformed replies of devices: the assignment is still read from them if possible, so that they can be answered.

A device repeats its update until there is a verdict, and a round waits for the reply; so a refusal is reported to both.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import msgspec

from edge_runtime.wire.messages import AssignmentKey


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that update and failure have in common; all other fields are ignored."""

    kind: Literal["update", "failure"]
    key: AssignmentKey
    train_loss: Any = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedReply:
    """A refused update or failure, with the assignment that it answers."""

    kind: Literal["update", "failure"]
    key: AssignmentKey
    why: str
    has_diverged: bool = False
    """Whether the reply reports a loss that is not finite."""


_decoder = msgspec.msgpack.Decoder(_Head)


def refused_reply(data: bytes, why: str) -> RefusedReply | None:
    """The reply that a refused payload contains; None if it cannot be identified."""
    try:
        head = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return RefusedReply(
        kind=head.kind,
        key=head.key,
        why=why,
        has_diverged=isinstance(head.train_loss, float) and not math.isfinite(head.train_loss),
    )
