"""Limits on the time that silent devices, and devices that never answer in time, may cost a round. Pure functions.

A device sends a message at once when it gets an assignment, and heartbeats otherwise. A device that sends neither is
lost early: at the latest after :data:`ANSWER_S`, or after :data:`QUIET_S` if as many updates were accepted as the round
waited for. While fewer devices have sent a message, further available devices are asked, so that devices that register
and never work do not displace working ones. A lost device counts again once it sends a message.

A device that misses rounds is left out of the next ones: after the second miss in a row one round, then two, four, at
most :data:`MOST_ROUNDS`. Silence counts as two misses. If no other device is available, it is asked anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from broker_server.methods.rounds.transitions import Step, with_participants
from broker_server.methods.rounds.types import (
    ChooseArms,
    DeviceHeard,
    Miss,
    Outcome,
    Participant,
    Phase,
    RunState,
)

ANSWER_S: Final = 20.0
"""Longest silence after an assignment: a heartbeat comes every 15 s, even if the assignment was lost on the way."""
QUIET_S: Final = 5.0
"""Silence after which a round that has enough updates, or too few devices, goes on without a device."""
MOST_ROUNDS: Final = 8
"""Most rounds in a row that a device is left out of."""
SILENT, LATE = 2, 1
"""Weights of a miss."""


def on_heard(state: RunState, event: DeviceHeard) -> Step:
    """Note that a device sent a message, so that the round may wait for it."""
    participant = state.participants.get(event.device_id)
    if participant is None or participant.silent_since is None:
        return state, ()
    return with_participants(state, {event.device_id: dataclasses.replace(participant, silent_since=None)}), ()


def excused(state: RunState) -> RunState:
    """Start to count silence anew, because the coordinator itself was offline."""
    silent = {name: p for name, p in state.participants.items() if p.silent_since is not None}
    return with_participants(
        state, {name: dataclasses.replace(p, silent_since=state.now) for name, p in silent.items()}
    )


def is_over(state: RunState, participant: Participant, *, has_enough: bool) -> bool:
    """Return whether an open participant has been silent for too long."""
    since = participant.silent_since
    return since is not None and state.now - since >= (QUIET_S if has_enough else ANSWER_S)


def has_enough(state: RunState) -> bool:
    """Return whether at least as many updates were accepted, or stand, as the round waited for devices."""
    accepted = sum(participant.outcome is Outcome.ACCEPTED for participant in state.participants.values())
    return accepted + state.num_standing >= state.num_awaited


def missed(state: RunState, weights: Mapping[str, int]) -> RunState:
    """Count devices that did not answer in this round; silent devices are away until they send a message."""
    if not weights:
        return state
    misses = dict(state.misses)
    for device_id, weight in weights.items():
        before = misses.get(device_id)
        count = weight + (before.count if before is not None else 0)
        rounds = min(MOST_ROUNDS, 2 ** min(count - 2, MOST_ROUNDS)) if count > 1 else 0
        misses[device_id] = Miss(count=count, until=state.round_number + 1 + rounds)
    silent = {device_id for device_id, weight in weights.items() if weight == SILENT}
    return dataclasses.replace(state, misses=misses, online=state.online - silent)


def answered(state: RunState, device_id: str) -> RunState:
    """Note that a device answered its assignment."""
    if device_id not in state.misses:
        return state
    return dataclasses.replace(state, misses={name: miss for name, miss in state.misses.items() if name != device_id})


def others(state: RunState) -> tuple[ChooseArms, ...]:
    """Ask further available devices if too few of the asked devices send messages."""
    participants = state.participants.values()
    is_quiet = any(p.is_open and is_over(state, p, has_enough=True) for p in participants)
    num_heard = sum(p.silent_since is None and p.outcome is not Outcome.LOST for p in participants) + state.num_standing
    if state.phase is not Phase.COLLECTING or not is_quiet or num_heard >= state.num_awaited:
        return ()
    called = tuple(sorted(state.eligible - state.participants.keys() - state.called))
    return (ChooseArms(round_number=state.round_number, device_ids=called),) if called else ()
