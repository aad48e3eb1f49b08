"""Log lines on the devices that a round waits for, and for how long."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from broker_server.methods.rounds.types import (
    DeviceOffline,
    DeviceRegistered,
    Event,
    Outcome,
    Participant,
    Phase,
    RunState,
    Tick,
)

logger = logging.getLogger(__name__)

MAX_NAMES: Final = 8
"""Most devices that a line names; of the others it gives the number."""


def say_at_start(state: RunState) -> None:
    """Log which devices an open round waits for after a restart of the coordinator."""
    awaited = _awaited(state)
    if state.phase is Phase.COLLECTING and awaited:
        logger.info(
            "round %d waits for %s to register: up to %g s, and up to %g s once a device that kept running is back",
            state.round_number,
            _names(awaited),
            state.limits.registration_timeout_s,
            state.limits.rejoin_s,
        )


def say(event: Event, before: RunState, after: RunState) -> None:
    """Log which devices a round begins to wait for, or no longer waits for, because of an event."""
    if after.participants is before.participants:
        return
    match event:
        case DeviceOffline(device_id=device_id, detail=detail):
            rejoin_s = after.limits.rejoin_s
            logger.info("round %d waits %g s for %s: %s", after.round_number, rejoin_s, device_id, detail)
        case DeviceRegistered(device_id=device_id) if before.is_regathering and not after.is_regathering:
            if awaited := _awaited(after):
                names, rejoin_s = _names(awaited), after.limits.rejoin_s
                logger.info(
                    "round %d: %s is back, so it waits %g s more for %s", after.round_number, device_id, rejoin_s, names
                )
        case Tick():
            lost = [
                p
                for device_id, p in after.participants.items()
                if p.outcome is Outcome.LOST and before.participants[device_id].outcome is None
            ]
            if lost:
                logger.warning(
                    "round %d goes on without %s: they did not answer in time", after.round_number, _names(lost)
                )
        case _:
            return


def _awaited(state: RunState) -> list[Participant]:
    return [p for p in state.participants.values() if p.is_open and p.lost_at is not None]


def _names(participants: Iterable[Participant]) -> str:
    names = sorted(participant.device_id for participant in participants)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
