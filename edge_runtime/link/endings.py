"""The ends of connections: which of them are no fault of the network, and the delay before the next attempt.

A broker may accept a client and end the connection again and again: at the same message, or for another client of the
same name. This will not stop by itself, so the reason is logged and the link waits longer.
"""

from __future__ import annotations

import dataclasses
from typing import Final

STABLE_S: Final = 10.0
"""A connection that lasted this long starts the back-off anew; shorter ones count as failures."""

SAME_ENDS: Final = 3
"""This many equal ends in a row count as no fault of the network."""

PROTOCOL_ERROR: Final = "Protocol error"
"""Reason of an end at an answer that is not MQTT, such as mosquitto's to a message over its size limit."""

TAKEN_OVER: Final = 0x8E
"""MQTT 5: another client connected under this one's id."""

TURNS_S: Final = (5.0, 60.0, 300.0, 1800.0)
"""Delays after another client took over this one's id, for the first, second, ... time. The first is short, so that the
other client is disconnected in turn and reports it too."""

FORGET_S: Final = 3600.0
"""After a connection of this length the other client counts as gone."""

_STEPS: Final = {
    0x87: "check the broker's ACL",
    0x93: "raise the broker's limit of messages under way (mosquitto: max_inflight_messages)",
    0x95: "raise the broker's limit (mosquitto: max_packet_size, message_size_limit)",
    0x96: "raise the broker's limit of messages a second",
    0x97: "raise the broker's quota",
    0x98: "ask who runs the broker: a person or a rule ended it",
    0x9A: "the broker keeps no messages, and something asked it to",
    0x9F: "the broker takes fewer connections a second: raise its limit",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a connection that was open."""

    reason: str
    """Reason in words."""
    code: int | None = None
    """Reason code of an MQTT 5 broker; None if it gave none."""
    unconfirmed: tuple[str, int] | None = None
    """Topic and bytes of the oldest message that the broker had not confirmed."""


class Endings:
    """The ends of one link's connections. It reads no clock; durations are passed in, seconds."""

    def __init__(self, client_id: str) -> None:
        """Begin without ends.

        Args:
            client_id: client id of the link, for messages.
        """
        self._client_id = client_id
        self._num_taken_over = 0
        self._num_same = 0
        self._same_kind = ""
        self._num_short = 0
        self._is_short = False

    @property
    def is_name_in_doubt(self) -> bool:
        """Return whether another client may use this one's name: older brokers end connections without a reason."""
        return self._is_short and self._num_short >= SAME_ENDS

    def note(self, ending: Ending, lasted_s: float) -> tuple[str, float]:
        """Record an end.

        Args:
            ending: the end.
            lasted_s: duration of the connection.

        Returns:
            The line to log about it, and the shortest wait before the next attempt.
        """
        if ending.code == TAKEN_OVER:
            return self._taken_over(lasted_s)
        kind = "" if ending.unconfirmed is None else _kind(ending.unconfirmed[0])
        self._num_same = self._num_same + 1 if kind and kind == self._same_kind else int(bool(kind))
        self._same_kind = kind
        self._is_short = is_short = lasted_s < STABLE_S and not kind and ending.code is None
        # A long connection undoes only one short one: of two clients that take turns, one has longer turns.
        self._num_short = self._num_short + 1 if is_short else max(0, self._num_short - 1)
        return self._line(ending), 0.0

    def _line(self, ending: Ending) -> str:
        at = "" if ending.unconfirmed is None else f" at {_message(ending.unconfirmed)}"
        if ending.code in _STEPS:
            return f"the broker ended the connection{at} ({ending.reason}): {_STEPS[ending.code]}"
        if at and (self._num_same >= SAME_ENDS or ending.reason == PROTOCOL_ERROR):
            again = "" if self._num_same == 1 else f" {self._num_same} times in a row"
            return (
                f"the connection ended{again}{at} ({ending.reason}): the broker, or what is "
                "between, probably refuses it; check its limit of message sizes, its quota and its ACL"
            )
        if self.is_name_in_doubt:
            return (
                f"the broker let client {self._client_id!r} in and the connection ended within {STABLE_S:g} s, "
                f"{self._num_short} times ({ending.reason}): another machine may use this name "
                "(--device-id, --fleet), or a rule of the broker ends it; see the broker's log"
            )
        return ending.reason

    def _taken_over(self, lasted_s: float) -> tuple[str, float]:
        if lasted_s > FORGET_S:
            self._num_taken_over = 0
        wait_s = TURNS_S[min(self._num_taken_over, len(TURNS_S) - 1)]
        self._num_taken_over += 1
        self._num_short = 0
        line = (
            f"another client connects as {self._client_id!r} and takes the place of this one: a second machine or "
            "process uses this name (was an SD card cloned?); give one of them another --device-id and a --state of "
            f"its own; trying again in {wait_s:g} s or more"
        )
        return line, wait_s


def _kind(topic: str) -> str:
    return topic.rpartition("/")[2]


def _message(unconfirmed: tuple[str, int]) -> str:
    topic, num_bytes = unconfirmed
    return f"a message of {num_bytes} bytes on {topic}"
