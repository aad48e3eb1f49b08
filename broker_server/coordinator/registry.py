"""Which devices are there: sessions and heartbeats. Pure; instants are monotonic seconds."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class _Session:
    session_id: str
    heard_at: float
    is_online: bool = True


class Registry:
    """Devices that registered with this coordinator process."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._sessions: dict[str, _Session] = {}

    @property
    def online(self) -> list[str]:
        """Devices that are there, by name."""
        return sorted(device_id for device_id, session in self._sessions.items() if session.is_online)

    def register(self, device_id: str, session_id: str, now: float) -> None:
        """A device registered."""
        self._sessions[device_id] = _Session(session_id, now)

    def heard(self, device_id: str, now: float) -> bool:
        """A device said something; False if it must register (again) first."""
        session = self._sessions.get(device_id)
        if session is None:
            return False
        session.heard_at = now
        return session.is_online

    def leave(self, device_id: str, session_id: str) -> bool:
        """A device's good-bye or will; False where it tells of a session that is over, or of none."""
        session = self._sessions.get(device_id)
        if session is None or session.session_id != session_id or not session.is_online:
            return False
        session.is_online = False
        return True

    def take_silent(self, now: float) -> list[str]:
        """Devices that have just been silent for too long; they count as offline from now on."""
        silent = [
            device_id
            for device_id, session in self._sessions.items()
            if session.is_online and now - session.heard_at > self._silence_s
        ]
        for device_id in silent:
            self._sessions[device_id].is_online = False
        return sorted(silent)

    def excuse(self, now: float) -> None:
        """Start counting silence anew: nobody could be heard, because this side was not connected."""
        for session in self._sessions.values():
            session.heard_at = now
