"""Messages to the coordinator: every one goes through here, under the right topic."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import Final

from edge_runtime.agent.precheck import Examples
from edge_runtime.agent.repeat import Repeat
from edge_runtime.bounds import limits
from edge_runtime.bounds.plain import plain
from edge_runtime.errors import MessageError
from edge_runtime.link.protocol import OpenLink
from edge_runtime.wire import topics
from edge_runtime.wire.measures import Capabilities
from edge_runtime.wire.messages import (
    SCHEMA_VERSION,
    AnyMessage,
    Assignment,
    Failure,
    FailureReason,
    Presence,
    Register,
    encode_message,
    kind_of,
)

logger = logging.getLogger(__name__)

COORDINATOR: Final = "coordinator"
"""The only peer of a device."""

SILENCES_S: Final = (10.0, 60.0, 600.0)
"""Times without an answer of a coordinator after which that is said; the last one again and again."""

MAX_DETAIL: Final = 1_500
"""Longest detail of a failure or a good-bye, characters."""


class CoordinatorChannel:
    """This device's side of the link.

    Attributes:
        link: the link itself.
        session_id: this process.
        is_registered: whether the coordinator has answered the registration since the last connect.
    """

    def __init__(
        self,
        open_link: OpenLink,
        fleet: str,
        device_id: str,
        capabilities: Capabilities,
        examples: Examples,
        rng: random.Random,
    ) -> None:
        """Prepare the link.

        Raises:
            AddressError: a TLS file cannot be used.
            MessageError: fleet or device id is not allowed.
        """
        self.session_id = secrets.token_hex(8)
        self.is_registered = False
        self._fleet = fleet
        self._device_id = device_id
        self._rng = rng
        self._register = Register(
            device_id=device_id,
            session_id=self.session_id,
            capabilities=capabilities,
            num_examples=examples.num_examples,
            data_bytes=min(examples.num_bytes, limits.MAX_FILE_BYTES),
        )
        self._registration = self.new_repeat()
        self._asked_at: float | None = None
        """Since when a coordinator owes an answer; None: it does not, or there is no connection."""
        self._num_silences = 0
        # Names hold no colon, so two devices of one broker never share an id. The broker would disconnect one of them.
        self.link = open_link(
            client_id=f"fedspine:{fleet}:{device_id}",
            subscriptions=topics.device_subscriptions(fleet, device_id),
            will=self.goodbye("connection lost"),
            max_message_bytes=limits.MAX_MESSAGE_BYTES,
            rng=rng,
        )

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        return time.monotonic

    def new_repeat(self) -> Repeat:
        """A timer for one message that wants an answer."""
        return Repeat(self._rng, self.clock)

    def say(self, message: AnyMessage) -> None:
        """Publish a message; lost while there is no connection, and when it cannot be encoded, which is logged."""
        try:
            payload = encode_message(message)
        except (MessageError, UnicodeEncodeError) as error:
            logger.warning("a %s was not sent: %s", kind_of(message), error)
        else:
            self.link.publish(self._topic(message), payload)

    def goodbye(self, detail: str) -> tuple[str, bytes]:
        """Topic and payload of the last message of this process."""
        message = Presence(
            device_id=self._device_id, session_id=self.session_id, online=False, detail=plain(detail)[:MAX_DETAIL]
        )
        return self._topic(message), encode_message(message)

    def register_again(self) -> None:
        """Register as soon as possible, and until there is an answer."""
        self.is_registered = False
        self._registration.restart()

    def register_if_due(self) -> None:
        """Register if there is no answer yet and it is time to say it (again); call it often."""
        if self.is_registered or not self.link.is_connected:
            self._asked_at, self._num_silences = None, 0
            return
        self._tell_of_silence()
        if not self._registration.is_due:
            return
        self.say(self._register)
        self._registration.said()

    def _tell_of_silence(self) -> None:
        """Log that nobody answers: only this device can notice that its fleet was mistyped."""
        now = self.clock()
        self._asked_at = now if self._asked_at is None else self._asked_at
        longest_s = SILENCES_S[-1] * max(1, self._num_silences - len(SILENCES_S) + 2)
        due_s = SILENCES_S[self._num_silences] if self._num_silences < len(SILENCES_S) else longest_s
        if now - self._asked_at < due_s:
            return
        self._num_silences += 1
        refused = f"; {self.link.last_refusal}" if self.link.last_refusal else ""
        logger.warning(
            "no coordinator of fleet %r has answered for %.0f s: check --fleet, and that 'fedspine coordinate' runs "
            "with that fleet on this broker, in a release that speaks schema_version %d%s; waiting for it",
            self._fleet,
            now - self._asked_at,
            SCHEMA_VERSION,
            refused,
        )

    def failure(self, assignment: Assignment, reason: FailureReason, detail: str) -> Failure:
        """The message that gives an assignment up."""
        return Failure(key=assignment.key, reason=reason, detail=plain(detail)[:MAX_DETAIL])

    def _topic(self, message: AnyMessage) -> str:
        return topics.up(self._fleet, self._device_id, kind_of(message))
