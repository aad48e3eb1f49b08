"""Ends of connections: the message about each, and the wait after it."""

from __future__ import annotations

import pytest

from edge_runtime.link.endings import TAKEN_OVER, TURNS_S, Ending, Endings

CUT = Ending(reason="Connection reset by peer")


def at(topic: str, num_bytes: int = 5000, code: int | None = None) -> Ending:
    return Ending(reason="cut", code=code, unconfirmed=(topic, num_bytes))


def test_one_cut_is_what_it_is() -> None:
    assert Endings("a").note(CUT, 1.0) == ("Connection reset by peer", 0.0)


@pytest.mark.parametrize(
    ("code", "step"), [(0x87, "ACL"), (0x95, "max_packet_size"), (0x97, "quota"), (0x93, "max_inflight_messages")]
)
def test_a_reason_of_the_broker_is_said_at_once_with_the_message(code: int, step: str) -> None:
    line, _ = Endings("a").note(at("up/a/chunk", code=code), 1.0)
    assert "at a message of 5000 bytes on up/a/chunk" in line
    assert step in line


def test_the_same_message_three_times_in_a_row_is_suspected_however_long_connections_lasted() -> None:
    ends = Endings("a")
    lines = [ends.note(at("up/a/chunk"), 100.0)[0] for _ in range(3)]
    assert lines[:2] == ["cut", "cut"]
    assert "3 times in a row at a message of 5000 bytes on up/a/chunk" in lines[2]


def test_other_messages_in_between_clear_the_suspicion() -> None:
    ends = Endings("a")
    lines = [ends.note(at(f"up/a/{kind}"), 100.0)[0] for kind in ("chunk", "chunk", "status", "chunk", "chunk")]
    assert lines == ["cut"] * 5


def test_connections_that_last_are_the_network_s() -> None:
    ends = Endings("a")
    assert [ends.note(CUT, 60.0)[0] for _ in range(5)] == [CUT.reason] * 5


def test_turns_of_two_clients_become_rare_and_start_over_after_an_hour_of_peace() -> None:
    ends = Endings("a")
    over = Ending(reason="Session taken over", code=TAKEN_OVER)
    assert [ends.note(over, 30.0)[1] for _ in range(5)] == [*TURNS_S, TURNS_S[-1]]
    assert ends.note(over, 4000.0)[1] == TURNS_S[0]
