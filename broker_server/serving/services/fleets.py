"""The claim on a fleet: one process coordinates it, and a second process detects this before it does anything.

Coordinators share a topic for claims, because a broker does not assign fleets. A coordinator asks for a fleet on this
topic, and the coordinator that has the fleet objects. Its network thread objects, even while the process is busy. A
coordinator that ended does not object, so it can be restarted at once. If two ask at the same time, the coordinator
with the lower session id goes on.

Two coordinators that were disconnected from each other may both have the fleet. When they are connected again, the one
that has had the fleet for longer goes on, and the other ends. Updates name their run, so neither accepts updates of the
other's run.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
from typing import Annotated, Final, Literal

import msgspec

from broker_server.errors import FleetInUseError
from edge_runtime.bounds.fields import Name
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.mqtt import Reflex
from edge_runtime.link.visit import visit
from edge_runtime.wire import topics

logger = logging.getLogger(__name__)

ECHO_S: Final = 5.0
"""Longest time until a coordinator's own question comes back; on a forbidden topic it never does."""

LISTEN_S: Final = 1.0
"""Longest time of an objection after that: it goes the same way, and its sender's thread waits for nothing else."""

LATEST_AT: Final = 1e11
"""Latest time that a message may name, Unix seconds."""

MOST_RIVALS: Final = 100
"""Most other coordinators of a fleet that are remembered."""

LAST: Final = "z"
"""Session id that sorts behind all others, for a process that only looks and yields to all."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A message from one coordinator to the others."""

    schema_version: Literal[1] = 1
    run_id: Name
    session_id: Name
    is_held: bool
    """Whether the sender has the fleet; otherwise it asks for the fleet."""
    since: Annotated[float, msgspec.Meta(ge=0, le=LATEST_AT)] = LATEST_AT
    """Time when the sender got the fleet, which it has or gave up, Unix seconds; the latest where it never had it."""


_decoder = msgspec.msgpack.Decoder(Claim)


class Claimant:
    """One process's claim on a fleet. For any number of threads."""

    def __init__(self, fleet: str, run_id: str, session_id: str) -> None:
        """Begin without the fleet.

        Args:
            fleet: name on the broker.
            run_id: run of this process.
            session_id: random, of this process.
        """
        self._fleet = fleet
        self._run_id = run_id
        self._session_id = session_id
        self._lock = threading.Lock()
        self._is_held = False
        self._since = LATEST_AT
        self._rival: Claim | None = None
        self._rivals: dict[str, bool] = {}
        """Sessions that had the fleet too, and whether they gave it up."""
        self._has_outlived = False
        self._echoed = threading.Event()
        self._objected = threading.Event()

    @property
    def reflex(self) -> Reflex:
        """The reflex for the link: it asks after every connect, and answers."""
        return Reflex(topic=topics.of_coordinators(self._fleet), greet=self._say, hear=self.hear)

    def take(self, at: float) -> None:
        """Claim the fleet; call it once, with the link connected.

        Args:
            at: time now, Unix seconds: of two that both have it, who has had it for longer goes on.

        Raises:
            FleetInUseError: another coordinator has it.
        """
        self._listen()
        with self._lock:
            self._is_held = self._rival is None
            self._since = min(at, LATEST_AT)
        self._refuse()

    def check(self) -> bool:
        """Return whether another coordinator had the fleet too and gave it up since the last call.

        Raises:
            FleetInUseError: another coordinator, which has had it for longer, has it.
        """
        self._refuse()
        with self._lock:
            news, self._has_outlived = self._has_outlived, False
        return news

    def look(self) -> None:
        """Check whether the fleet has a coordinator, without claiming it: another coordinator may claim it meanwhile.

        Raises:
            FleetInUseError: a coordinator has it.
        """
        self._listen()
        self._refuse()

    def _listen(self) -> None:
        """Wait until one's own question came back, and for an objection to it."""
        if not self._echoed.wait(ECHO_S):
            topic = topics.of_coordinators(self._fleet)
            logger.warning(
                "cannot see whether fleet %r has another coordinator: let this one write and read %s",
                self._fleet,
                topic,
            )
        self._objected.wait(LISTEN_S)

    def _refuse(self) -> None:
        if self._rival is None:
            return
        msg = (
            f"fleet {self._fleet!r} has a coordinator already, of run {self._rival.run_id!r}: stop that one, or "
            "give this run another fleet (--fleet-name; 'fleet' in config.toml)"
        )
        raise FleetInUseError(msg)

    def hear(self, payload: bytes) -> bytes | None:
        """Return the answer of this process to a message of a coordinator; None = no answer."""
        try:
            other = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if other.session_id == self._session_id:
            self._echoed.set()
            return None
        with self._lock:
            if self._is_held and other.is_held:
                return self._meet(other)
            if not self._is_held and (other.is_held or other.session_id < self._session_id):
                self._rival = other
                self._objected.set()
                return None
            if not other.is_held and other.since < LATEST_AT:
                self._note(other)
            return self._said()

    def _meet(self, other: Claim) -> bytes:
        """Handle another coordinator that has the fleet too, after a disconnection. Return the answer."""
        if (self._since, self._session_id) < (other.since, other.session_id):
            self._note(other)
        else:
            self._rival, self._is_held = other, False
        return self._said()

    def _note(self, other: Claim) -> None:
        """Log once that another coordinator has the fleet too, or gave it up."""
        if self._rivals.get(other.session_id) in {True, not other.is_held}:
            return
        if other.session_id not in self._rivals and len(self._rivals) >= MOST_RIVALS:
            return
        self._rivals[other.session_id] = not other.is_held
        self._has_outlived |= not other.is_held
        what = "must end, for it has it for less long" if other.is_held else "gave it up"
        logger.warning("run %r had a coordinator on fleet %r too, which %s", other.run_id, self._fleet, what)

    def _say(self) -> bytes:
        with self._lock:
            return self._said()

    def _said(self) -> bytes:
        claim = Claim(run_id=self._run_id, session_id=self._session_id, is_held=self._is_held, since=self._since)
        return msgspec.msgpack.encode(claim)


def check_free(address: BrokerAddress, tls: TlsFiles, fleet: str, rng: random.Random) -> None:
    """Check whether a fleet has a coordinator, without claiming it.

    Args:
        address: the broker, password included.
        tls: files for an encrypted address.
        fleet: name on the broker.
        rng: source of jitter.

    Raises:
        FleetInUseError: the fleet has a coordinator.
        BrokerUnreachableError: nobody answers.
        BrokerRefusedError: the broker refuses.
    """
    claimant = Claimant(fleet, "check", LAST + secrets.token_hex(8))
    with visit(address, tls, rng, claimant.reflex):
        claimant.look()
