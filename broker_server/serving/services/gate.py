"""Admission to the artifact server, and time limits on its connections, so that no client can block others.

A connection is one request. The request must arrive within ``HEADER_S``. An answer that the client does not read ends
after ``STALL_S``; a device later asks for the rest with a range. When all places are taken, a new connection replaces
an idle one, from the address with the most idle connections. A client that reads its answer keeps its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

HEADER_S: Final = 7.0
"""Longest time from a connection to its complete request, seconds."""

STALL_S: Final = 120.0
"""Longest time without progress of an answer, seconds."""

SLOW_S: Final = 10.0
"""An answer that did not move for this long may lose its place to a new connection."""

MAX_REQUEST_BYTES: Final = 16_384
"""Largest size of a request line and all headers."""

MAX_CONNECTIONS: Final = 1024
BACKLOG: Final = 100
"""Connections that are taken from the system at a time, before any can be closed again."""

RESERVED_DESCRIPTORS: Final = 64 + BACKLOG
DESCRIPTORS_PER_CONNECTION: Final = 2
"""A socket, and the file that is sent."""

_SWEEP_S: Final = 1.0
_REPORT_S: Final = 60.0
_IPV6_SITE: Final = 64
_CLOSING: Final = "Connection: close\r\nContent-Length: 0\r\n\r\n"
_TIMED_OUT: Final = f"HTTP/1.1 408 Request Timeout\r\n{_CLOSING}".encode()
_TOO_LARGE: Final = f"HTTP/1.1 431 Request Header Fields Too Large\r\n{_CLOSING}".encode()
_FULL: Final = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n{_CLOSING}".encode()


def max_connections() -> int:
    """Number of connections for which this process has descriptors, after its limit is raised to the maximum."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_CONNECTION * MAX_CONNECTIONS
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            soft = target
    free = wanted if soft == resource.RLIM_INFINITY else soft
    return max(1, min(MAX_CONNECTIONS, (free - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))


class Gate:
    """All connections of a server.

    Args:
        most: number of places.
        header_s: see :data:`HEADER_S`.
        stall_s: see :data:`STALL_S`.
        slow_s: see :data:`SLOW_S`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        most: int,
        clock: Callable[[], float],
        *,
        header_s: float = HEADER_S,
        stall_s: float = STALL_S,
        slow_s: float = SLOW_S,
    ) -> None:
        self._most = most
        self._header_s = header_s
        self._stall_s = stall_s
        self._slow_s = slow_s
        self._clock = clock
        self._inside: dict[Guarded, None] = {}  # in order of arrival
        self._addresses: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._reported_at = clock()

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock()

    def enter(self, newcomer: Guarded) -> bool:
        """Admit a connection, if need be in place of another one; False if there is no place."""
        if len(self._inside) >= self._most and not self._make_room():
            self._closed["refused"] += 1
            newcomer.dismiss(_FULL)
            return False
        newcomer.moved_at = self._clock()
        self._inside[newcomer] = None
        self._addresses[newcomer.address] += 1
        return True

    def leave(self, one: Guarded) -> None:
        """A connection ended; calling it again does nothing."""
        if one in self._inside:
            del self._inside[one]
            self._addresses[one.address] -= 1
            if not self._addresses[one.address]:
                del self._addresses[one.address]

    def sweep(self) -> None:
        """Close connections that were silent for too long; log their number, at most once a minute."""
        now = self._clock()
        for one in list(self._inside):
            one.look(now)
            idle = now - one.moved_at
            if one.is_asking and idle > self._header_s:
                self._closed["sent no request in time"] += 1
                self._end(one, _TIMED_OUT)
            elif idle > self._stall_s:
                self._closed["did not take the answer"] += 1
                self._end(one)
        if self._closed and now - self._reported_at >= _REPORT_S:
            counts = ", ".join(f"{number} {why}" for why, number in sorted(self._closed.items()))
            logger.warning("connections closed: %s", counts)
            self._closed.clear()
            self._reported_at = now

    async def watch(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.sweep()

    def _make_room(self) -> bool:
        now = self._clock()
        silent = [one for one in self._inside if one.is_asking or now - one.moved_at > self._slow_s]
        if not silent:
            return False
        victim = max(silent, key=lambda one: (self._addresses[one.address], one.is_asking, now - one.moved_at))
        self._closed["gave their place to others"] += 1
        self._end(victim)
        return True

    def _end(self, one: Guarded, last_words: bytes = b"") -> None:
        self.leave(one)
        one.dismiss(last_words)


class Guarded(H11Protocol):
    """A connection that the gate of its class watches.

    Attributes:
        gate: set by :func:`guarded_by`.
        address: address of the client; for IPv6 its /64 network.
        moved_at: time of the last progress, on the gate's clock.
    """

    gate: Gate
    address: str = ""
    moved_at: float = 0.0
    _asked = 0
    _unsent = 0
    _is_inside = False

    @property
    def is_asking(self) -> bool:
        """Return whether its request has not fully arrived."""
        return self.cycle is None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        self.address = _site(transport.get_extra_info("peername"))
        connected: socket.socket | None = transport.get_extra_info("socket")
        # without it, a dead peer is noticed only after hours
        if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))
        self._is_inside = self.gate.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self.gate.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`; bytes after the request, or from a refused client, are dropped."""
        if not self._is_inside or not self.is_asking:
            return
        self._asked += len(data)
        if self._asked > MAX_REQUEST_BYTES:
            self.dismiss(_TOO_LARGE)
        else:
            super().data_received(data)
            if not self.is_asking:
                self.moved_at = self.gate.now()

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`: the answer moved on."""
        self.moved_at = self.gate.now()
        super().resume_writing()

    def look(self, now: float) -> None:
        """Check the progress of the answer: bytes were written since the last check, or none are left to write."""
        unsent = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if not self.is_asking and (unsent == 0 or unsent != self._unsent):
            self.moved_at = now
        self._unsent = unsent

    def dismiss(self, last_words: bytes) -> None:
        """End the connection; send ``last_words`` if no answer is under way."""
        self._is_inside = False
        if last_words and self.is_asking and not self.transport.is_closing():
            self.transport.write(last_words)
            self.transport.close()
        else:
            self.transport.abort()


def guarded_by(gate: Gate) -> type[Guarded]:
    """The protocol of connections that a gate watches, as uvicorn takes it."""
    return type("GuardedConnection", (Guarded,), {"gate": gate})


def _site(peer: object) -> str:
    host = str(cast("tuple[object, ...]", peer)[0]) if isinstance(peer, tuple) and peer else ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address), _IPV6_SITE), strict=False))
    return host
