"""The registered devices: sessions, heartbeats, rates of messages. No I/O; instants are monotonic seconds."""

from __future__ import annotations

import collections
import dataclasses
from typing import Final

from broker_server.serving.coordinator.buckets import Allowance, Bucket

MESSAGES: Final = Allowance(burst=200, per_s=10)
"""Messages of one device, beside chunks and requests for them; a device sends about one a second."""


LATE_S: Final = 10.0
"""Longest time for which a message of an ended process may be under way, seconds."""

NUM_REPLACED: Final = 8
"""Most replaced sessions that are remembered for each device."""


@dataclasses.dataclass(slots=True)
class _Session:
    session_id: str
    heard_at: float
    replaced: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=NUM_REPLACED))
    """Sessions before this one, oldest first."""
    replaced_at: float = 0.0
    is_online: bool = True
    messages: Bucket = dataclasses.field(default_factory=Bucket)
    chunks: Bucket = dataclasses.field(default_factory=Bucket)


class Registry:
    """Devices that registered with this coordinator process, at most ``max_devices``."""

    def __init__(self, silence_s: float, max_devices: int) -> None:
        self._silence_s = silence_s
        self._max_devices = max_devices
        self._sessions: dict[str, _Session] = {}

    @property
    def online(self) -> list[str]:
        """Online devices, by name."""
        return sorted(device_id for device_id, session in self._sessions.items() if session.is_online)

    @property
    def has_online(self) -> bool:
        """Return whether any device is online."""
        return any(session.is_online for session in self._sessions.values())

    def knows(self, device_id: str) -> bool:
        """Return whether a device has registered, and was not removed since."""
        return device_id in self._sessions

    def is_shared(self, device_id: str, session_id: str, now: float) -> bool:
        """Return whether two processes use one device id: a replaced session still sends messages."""
        session = self._sessions.get(device_id)
        if session is None or session_id not in session.replaced:
            return False
        return session_id == session.session_id or now - session.replaced_at > LATE_S

    def register(self, device_id: str, session_id: str, now: float) -> bool:
        """Add a device; False if there are too many online devices.

        A new device replaces the device that has been offline longest.
        """
        known = self._sessions.get(device_id)
        if known is not None:
            if known.session_id != session_id:
                known.replaced.append(known.session_id)
                known.replaced_at = now
            known.session_id, known.heard_at, known.is_online = session_id, now, True
            return True
        if len(self._sessions) >= self._max_devices:
            gone = [(session.heard_at, name) for name, session in self._sessions.items() if not session.is_online]
            if not gone:
                return False
            del self._sessions[min(gone)[1]]
        self._sessions[device_id] = _Session(session_id, now)
        return True

    def may_write(self, device_id: str, now: float) -> bool:
        """Return whether a message of a device is read; messages beyond :data:`MESSAGES` are not."""
        session = self._sessions.get(device_id)
        return session is not None and session.messages.take(MESSAGES, now)

    def may_pull(self, device_id: str, num_chunks: int, allowance: Allowance, now: float) -> bool:
        """Return whether a device gets the chunks that it asks for."""
        session = self._sessions.get(device_id)
        return session is not None and session.chunks.take(allowance, now, num_chunks)

    def renew_pulls(self) -> None:
        """Give every device its whole allowance of chunks again."""
        for session in self._sessions.values():
            session.chunks = Bucket()

    def heard(self, device_id: str, now: float) -> bool:
        """Note a message of a device; False if the device must register (again) first."""
        session = self._sessions.get(device_id)
        if session is None:
            return False
        session.heard_at = now
        return session.is_online

    def leave(self, device_id: str, session_id: str) -> bool:
        """Handle a device's good-bye or will; False if its session is unknown or over."""
        session = self._sessions.get(device_id)
        if session is None or session.session_id != session_id or not session.is_online:
            return False
        session.is_online = False
        return True

    def take_silent(self, now: float) -> list[str]:
        """Return devices that just became silent for too long; they count as offline from now on."""
        silent = [
            device_id
            for device_id, session in self._sessions.items()
            if session.is_online and now - session.heard_at > self._silence_s
        ]
        for device_id in silent:
            self._sessions[device_id].is_online = False
        return sorted(silent)

    def excuse(self, now: float) -> None:
        """Start to count silence anew, because the coordinator was not connected."""
        for session in self._sessions.values():
            session.heard_at = now
