"""Messages to the coordinator: this channel publishes each of them under its topic."""

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
"""Seconds without an answer of the coordinator after which a warning is logged; the last value repeats."""

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
        """Time since which the device waits for an answer; None = it does not wait, or there is no connection."""
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
        """A timer for one message that needs an answer."""
        return Repeat(self._rng, self.clock)

    def say(self, message: AnyMessage) -> None:
        """Publish a message. It is lost without a connection. If it cannot be encoded, this is logged."""
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
        """Register as soon as possible, and repeat it until there is an answer."""
        self.is_registered = False
        self._registration.restart()

    def register_if_due(self) -> None:
        """Send the registration if there is no answer yet and its timer is due; call it often."""
        if self.is_registered or not self.link.is_connected:
            self._asked_at, self._num_silences = None, 0
            return
        self._tell_of_silence()
        if not self._registration.is_due:
            return
        self.say(self._register)
        self._registration.said()

    def _tell_of_silence(self) -> None:
        """Log that nobody answers: a mistyped fleet shows only on the device."""
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
        """The message that tells the coordinator that an assignment was given up."""
        return Failure(key=assignment.key, reason=reason, detail=plain(detail)[:MAX_DETAIL])

    def _topic(self, message: AnyMessage) -> str:
        return topics.up(self._fleet, self._device_id, kind_of(message))
