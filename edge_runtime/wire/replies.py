"""Replies of devices that cannot be read whole: whose they are is found all the same, so that they can be answered.

A device repeats its update until there is a verdict, and a round waits for it; so a refusal is reported to both.
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
    """An update or a failure that was refused, by the assignment that it answers."""

    kind: Literal["update", "failure"]
    key: AssignmentKey
    why: str
    has_diverged: bool = False
    """Whether it says that its loss left the finite numbers."""


_decoder = msgspec.msgpack.Decoder(_Head)


def refused_reply(data: bytes, why: str) -> RefusedReply | None:
    """The reply that a refused payload was to be; None if that cannot be told."""
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
