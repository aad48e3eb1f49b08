"""Limits on the time that silent devices, and devices that never answer in time, may cost a round. Pure.

A device says something at once when it gets an assignment, and a heartbeat otherwise. One that does neither is lost
early: at the latest after :data:`ANSWER_S`, and after :data:`QUIET_S` where as many as the round waited for have been
accepted. While fewer than those have said anything, others that are there are called in, so that devices that register
and never work do not keep those that do out of a round. A lost device counts again as soon as it says something.

A device that misses rounds waits out the next ones: after the second in a row one, then two, four, at most
:data:`MOST_ROUNDS`. Silence counts as two. Where nobody else is there, it is asked all the same.
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
"""Longest silence after an assignment: a heartbeat comes every 15 s, also where the assignment was lost on the way."""
QUIET_S: Final = 5.0
"""Silence after which a round that has enough updates, or too few devices, goes on without a device."""
MOST_ROUNDS: Final = 8
"""That a device waits out."""
SILENT, LATE = 2, 1
"""Weights of a miss."""


def on_heard(state: RunState, event: DeviceHeard) -> Step:
    """Note that a device said something, so that it may be waited for."""
    participant = state.participants.get(event.device_id)
    if participant is None or participant.silent_since is None:
        return state, ()
    return with_participants(state, {event.device_id: dataclasses.replace(participant, silent_since=None)}), ()


def excused(state: RunState) -> RunState:
    """Start counting silence anew: it was on this side."""
    silent = {name: p for name, p in state.participants.items() if p.silent_since is not None}
    return with_participants(
        state, {name: dataclasses.replace(p, silent_since=state.now) for name, p in silent.items()}
    )


def is_over(state: RunState, participant: Participant, *, has_enough: bool) -> bool:
    """Return whether an open participant has been silent for too long."""
    since = participant.silent_since
    return since is not None and state.now - since >= (QUIET_S if has_enough else ANSWER_S)


def has_enough(state: RunState) -> bool:
    """Return whether as many updates were accepted, or stand, as devices the round waited for."""
    accepted = sum(participant.outcome is Outcome.ACCEPTED for participant in state.participants.values())
    return accepted + state.num_standing >= state.num_awaited


def missed(state: RunState, weights: Mapping[str, int]) -> RunState:
    """Count devices that did not answer in this round; silent ones are away until they say something."""
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
    """Call in devices that are there, where too few of those that were asked say anything."""
    participants = state.participants.values()
    is_quiet = any(p.is_open and is_over(state, p, has_enough=True) for p in participants)
    num_heard = sum(p.silent_since is None and p.outcome is not Outcome.LOST for p in participants) + state.num_standing
    if state.phase is not Phase.COLLECTING or not is_quiet or num_heard >= state.num_awaited:
        return ()
    called = tuple(sorted(state.eligible - state.participants.keys() - state.called))
    return (ChooseArms(round_number=state.round_number, device_ids=called),) if called else ()
