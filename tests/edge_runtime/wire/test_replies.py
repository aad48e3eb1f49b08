"""The sender of a refused reply."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.messages import AnyMessage, AssignmentKey, Failure, Update, encode_message, kind_of
from edge_runtime.wire.replies import RefusedReply, refused_reply
from tests.edge_runtime.wire.test_messages import EXAMPLES

REPLIES = [message for message in EXAMPLES if isinstance(message, Update | Failure)]


@pytest.mark.parametrize("message", REPLIES, ids=kind_of)
def test_the_assignment_of_a_damaged_reply_is_found(message: Update | Failure) -> None:
    fields = msgspec.msgpack.decode(encode_message(message)) | {"train_loss": "much", "reason": 7, "schema_version": 2}
    assert refused_reply(msgspec.msgpack.encode(fields), "why") == RefusedReply(
        kind="update" if isinstance(message, Update) else "failure",
        key=AssignmentKey(run_id="run", round_number=3, device_id="board-7", attempt=1),
        why="why",
    )


@pytest.mark.parametrize("message", [m for m in EXAMPLES if m not in REPLIES], ids=kind_of)
def test_what_is_no_reply_has_no_assignment(message: AnyMessage) -> None:
    assert refused_reply(encode_message(message), "why") is None


@pytest.mark.parametrize("changed", [{"round_number": 2**40}, {"attempt": 0}, {"device_id": "a/b"}, {"run_id": ""}])
def test_a_reply_to_nothing_has_no_assignment(changed: dict[str, object]) -> None:
    fields = msgspec.msgpack.decode(encode_message(REPLIES[0]))
    fields["key"] |= changed
    assert refused_reply(msgspec.msgpack.encode(fields), "why") is None


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_have_no_assignment(data: bytes) -> None:
    assert refused_reply(data, "why") is None


def test_a_loss_that_left_the_finite_numbers_is_told_apart() -> None:
    fields = msgspec.msgpack.decode(encode_message(REPLIES[0]))
    found = [refused_reply(msgspec.msgpack.encode(fields | {"train_loss": loss}), "") for loss in (1e308, float("nan"))]
    assert [reply is not None and reply.has_diverged for reply in found] == [False, True]
