"""The rounds of a run as a pure state machine: an event gives a new state and commands, without clock, I/O or chance.

    EVALUATING (round 0) -> WAITING -> CHOOSING -> COLLECTING -> AGGREGATING -> EVALUATING -> WAITING -> ... -> FINISHED
                               |                       ^    |                                   |
                               v                       +----+ an arm too large is chosen again  v
                             FAILED (no device in time)                            FAILED (too many empty rounds)

The coordinator executes the commands and answers with events: :class:`ChooseArms` with :class:`ArmsChosen`,
:class:`PullUpdate` with :class:`UpdateStored`, :class:`UpdateRejected` or :class:`UpdateLate`, :class:`Aggregate` with
:class:`AggregationDone`, :class:`Evaluate` with :class:`EvaluationDone`. Time enters only with :class:`Tick`.
Events may be lost, repeated or late; each has a decided answer. An update counts once, by its :class:`AssignmentKey`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from broker_server.methods.rounds import silence
from broker_server.methods.rounds.transitions import (
    Step,
    begin_if_ready,
    close_if_complete,
    end,
    key_of,
    on_aggregated,
    on_evaluated,
    wait,
    with_participants,
)
from broker_server.methods.rounds.types import (
    AggregationDone,
    AnswerOldUpdate,
    ArmsChosen,
    ChooseArmAgain,
    Command,
    DeviceFailed,
    DeviceHeard,
    DeviceOffline,
    DeviceRegistered,
    Evaluate,
    EvaluationDone,
    Event,
    Outcome,
    Participant,
    Phase,
    PullUpdate,
    RoundLimits,
    RunState,
    SendAssignment,
    SendCancel,
    SendVerdict,
    Tick,
    UpdateAnnounced,
    UpdateLate,
    UpdateRejected,
    UpdateStored,
)
from edge_runtime.wire.messages import AssignmentKey, FailureReason
from edge_runtime.wire.work import Arm

MAX_FAREWELLS = 64
"""Most devices whose good-bye message is kept."""
MAX_ATTEMPTS = 3
"""Assignments that one device may get in one round (the later ones with cheaper arms)."""


def start(limits: RoundLimits, now: float, served: frozenset[str] = frozenset()) -> Step:
    """Begin a run: the adapter is evaluated before training (round 0), while devices register.

    Args:
        limits: see :class:`RoundLimits`.
        now: monotonic seconds.
        served: devices whose replies are stored already.
    """
    state = RunState(limits=limits, phase=Phase.EVALUATING, now=now, round_number=0, served=served)
    return state, (Evaluate(round_number=0, is_last=False),)


def resume(
    limits: RoundLimits,
    now: float,
    finished: int,
    participants: Mapping[str, Participant] | None,
    *,
    num_used_rounds: int,
    served: frozenset[str] = frozenset(),
) -> Step:
    """Go on with a run after a restart of the coordinator.

    Args:
        limits: as in :func:`start`.
        now: monotonic seconds.
        finished: number of the last round that was finished (0: the evaluation before training).
        participants: participants of round ``finished + 1`` if it had begun, by device id. Open participants get
            ``registration_timeout_s`` to register again, and then the same assignment with the same attempt. Once a
            device registers whose process did not restart, the time for all others is ``rejoin_s``, because they got
            the same hello. If devices are asked once, a round that had asked none begins anew, so that a reply that
            was damaged meanwhile is requested again.
        num_used_rounds: finished rounds whose updates made the next adapter.
        served: see :func:`start`.
    """
    if finished >= limits.num_rounds:
        state = RunState(
            limits=limits, phase=Phase.FINISHED, now=now, round_number=finished, num_used_rounds=num_used_rounds
        )
        return end(state)
    state = RunState(
        limits=limits,
        phase=Phase.WAITING,
        now=now,
        round_number=finished + 1,
        num_used_rounds=num_used_rounds,
        is_regathering=True,
        served=served,
    )
    if participants is None or (limits.asks_once and not participants):
        return wait(state, limits.num_devices)
    back_by = now + limits.registration_timeout_s
    waiting = {
        device_id: dataclasses.replace(p, lost_at=back_by) if p.is_open else p for device_id, p in participants.items()
    }
    state = dataclasses.replace(
        state, phase=Phase.COLLECTING, participants=waiting, deadline_at=now + limits.round_deadline_s
    )
    return close_if_complete(state)


def advance(state: RunState, event: Event) -> Step:
    """Return the next state and the commands, which are to be executed in order after the state was saved."""
    return _step(dataclasses.replace(state, touched=()) if state.touched else state, event)


def _step(state: RunState, event: Event) -> Step:  # noqa: C901, PLR0911 - one return for each event
    match event:
        case Tick():
            return _on_tick(state, event)
        case DeviceRegistered():
            return _on_registered(state, event)
        case DeviceHeard():
            return silence.on_heard(state, event)
        case DeviceOffline():
            return _on_offline(state, event)
        case ArmsChosen():
            return _on_arms_chosen(state, event)
        case UpdateAnnounced():
            return _on_announced(state, event)
        case UpdateStored():
            return _on_stored(state, event)
        case UpdateRejected() | UpdateLate():
            return _on_refused(state, event)
        case DeviceFailed():
            return _on_failed(state, event)
        case AggregationDone():
            return on_aggregated(state, event)
        case EvaluationDone():
            return on_evaluated(state, event)


def open_participant(state: RunState, key: AssignmentKey) -> Participant | None:
    """The participant whose update with ``key`` still counts; None if it does not count."""
    if state.phase is not Phase.COLLECTING or key.round_number != state.round_number:
        return None
    participant = state.participants.get(key.device_id)
    if participant is None or participant.attempt != key.attempt or participant.awaits_arm:
        return None
    return participant if participant.outcome in {None, Outcome.LOST} else None


# ---- time ------------------------------------------------------------------------------------------------------------


def _on_tick(state: RunState, event: Tick) -> Step:
    state = dataclasses.replace(state, now=max(state.now, event.now))
    if state.phase is Phase.WAITING:
        return begin_if_ready(state)
    if state.phase is not Phase.COLLECTING:
        return state, ()
    if event.is_deaf:
        state = silence.excused(state)
    changed: dict[str, Participant] = {}
    commands: list[Command] = []
    misses: dict[str, int] = {}
    has_enough = silence.has_enough(state)
    for device_id, participant in state.participants.items():
        if not participant.is_open:
            continue
        if state.now >= state.deadline_at:
            detail = participant.detail or f"no update within {state.limits.round_deadline_s:g} s"
            changed[device_id] = _decided(participant, Outcome.TIMED_OUT, detail)
            commands.append(SendCancel(key=key_of(state, participant), detail="the round's deadline passed"))
            misses[device_id] = silence.LATE
        elif participant.lost_at is not None and state.now >= participant.lost_at:
            changed[device_id] = _decided(participant, Outcome.LOST, participant.detail or "went offline")
        elif participant.lost_at is None and silence.is_over(state, participant, has_enough=has_enough):
            changed[device_id] = _decided(participant, Outcome.LOST, "said nothing after it was asked")
            misses[device_id] = silence.SILENT
    if not changed:
        return _with_others(state)
    closed, more = close_if_complete(silence.missed(with_participants(state, changed), misses))
    return closed, (*commands, *more)


def _with_others(state: RunState) -> Step:
    commands = silence.others(state)
    called = {device_id for command in commands for device_id in command.device_ids}
    return (dataclasses.replace(state, called=state.called | called) if called else state), commands


# ---- devices ---------------------------------------------------------------------------------------------------------


def _on_registered(state: RunState, event: DeviceRegistered) -> Step:
    farewells = {device_id: why for device_id, why in state.farewells.items() if device_id != event.device_id}
    state = dataclasses.replace(state, online=state.online | {event.device_id}, farewells=farewells)
    if event.has_stayed and state.is_regathering:
        state = _hurried(state)
    if state.phase is Phase.WAITING:
        return begin_if_ready(state)
    participant = state.participants.get(event.device_id)
    if state.phase is not Phase.COLLECTING or participant is None or participant.awaits_arm:
        return state, ()
    if participant.outcome not in {None, Outcome.LOST}:
        return state, ()
    back = dataclasses.replace(participant, outcome=None, detail="", lost_at=None, silent_since=state.now)
    state = with_participants(state, {event.device_id: back})
    return state, (_assignment(state, back),)


def _hurried(state: RunState) -> RunState:
    """Shorten the wait after a restart: a device whose process stayed registered, so others will register soon too."""
    back_by = state.now + state.limits.rejoin_s
    state = dataclasses.replace(state, is_regathering=False, has_assembled=True)
    if state.phase is Phase.WAITING:
        return dataclasses.replace(state, patient_until=min(state.patient_until, back_by))
    if state.phase is not Phase.COLLECTING:
        return state
    awaited = {
        device_id: dataclasses.replace(p, lost_at=min(p.lost_at, back_by))
        for device_id, p in state.participants.items()
        if p.is_open and p.lost_at is not None
    }
    return with_participants(state, awaited)


def _on_offline(state: RunState, event: DeviceOffline) -> Step:
    farewells = {**state.farewells, event.device_id: event.detail}
    if len(farewells) > MAX_FAREWELLS:
        del farewells[next(iter(farewells))]
    state = dataclasses.replace(state, online=state.online - {event.device_id}, farewells=farewells)
    participant = state.participants.get(event.device_id)
    if state.phase is not Phase.COLLECTING or participant is None or not participant.is_open:
        return state, ()
    if participant.lost_at is not None:
        return state, ()
    gone = dataclasses.replace(participant, lost_at=state.now + state.limits.rejoin_s, detail=event.detail)
    return with_participants(state, {event.device_id: gone}), ()


def _on_arms_chosen(state: RunState, event: ArmsChosen) -> Step:
    if event.round_number != state.round_number:
        return state, ()
    if state.phase is Phase.COLLECTING:
        return _on_chosen_again(state, event)
    if state.phase is not Phase.CHOOSING:
        return state, ()
    participants = {
        device_id: _participant(state, device_id, 1, arm)
        for device_id, arm in sorted(event.arms.items())
        if arm is not None
    }
    state = dataclasses.replace(
        state,
        phase=Phase.COLLECTING,
        participants=participants,
        touched=tuple(participants),
        deadline_at=state.now + state.limits.round_deadline_s,
    )
    commands = tuple(_assignment(state, p) for p in participants.values() if p.lost_at is None)
    closed, more = close_if_complete(state)
    return closed, (*commands, *more)


def _on_chosen_again(state: RunState, event: ArmsChosen) -> Step:
    changed: dict[str, Participant] = {}
    for device_id, participant in state.participants.items():
        if not participant.awaits_arm or device_id not in event.arms:
            continue
        arm = event.arms[device_id]
        if arm is None:
            changed[device_id] = dataclasses.replace(participant, awaits_arm=False, outcome=Outcome.FAILED)
            continue
        changed[device_id] = _participant(state, device_id, participant.attempt + 1, arm)
    for device_id in sorted(state.called & event.arms.keys() - state.participants.keys()):
        arm = event.arms[device_id]
        if arm is not None:
            changed[device_id] = _participant(state, device_id, 1, arm)
    state = with_participants(state, changed)
    commands = tuple(_assignment(state, p) for p in changed.values() if p.is_open and p.lost_at is None)
    closed, more = close_if_complete(state)
    return closed, (*commands, *more)


def _participant(state: RunState, device_id: str, attempt: int, arm: Arm) -> Participant:
    is_online = device_id in state.online
    lost_at, silent_since = (None, state.now) if is_online else (state.now + state.limits.rejoin_s, None)
    return Participant(device_id=device_id, attempt=attempt, arm=arm, lost_at=lost_at, silent_since=silent_since)


def _on_failed(state: RunState, event: DeviceFailed) -> Step:
    participant = open_participant(state, event.key)
    if participant is None:
        return state, ()
    state = silence.answered(state, participant.device_id)
    failed = dataclasses.replace(
        _decided(participant, Outcome.FAILED, f"{event.reason}: {event.detail}"), reason=event.reason
    )
    if event.reason is FailureReason.ARM_INFEASIBLE and participant.attempt < MAX_ATTEMPTS:
        failed = dataclasses.replace(failed, outcome=None, awaits_arm=True)
        state = with_participants(state, {failed.device_id: failed})
        return state, (ChooseArmAgain(round_number=state.round_number, device_id=failed.device_id),)
    return close_if_complete(with_participants(state, {failed.device_id: failed}))


# ---- updates ---------------------------------------------------------------------------------------------------------


def _on_announced(state: RunState, event: UpdateAnnounced) -> Step:
    key = event.key
    if key.round_number > state.round_number:
        detail = f"round {key.round_number} has not begun"
        return state, (SendVerdict(key=key, accepted=False, detail=detail),)
    if state.phase is not Phase.COLLECTING or key.round_number < state.round_number:
        return state, (AnswerOldUpdate(key=key),)
    if (participant := open_participant(state, key)) is not None:
        announced = dataclasses.replace(participant, outcome=None, detail="", lost_at=None, silent_since=None)
        return with_participants(state, {key.device_id: announced}), (PullUpdate(key=key),)
    known = state.participants.get(key.device_id)
    if known is None:
        detail = f"no assignment in round {key.round_number}"
    elif known.attempt != key.attempt:
        detail = f"attempt {key.attempt} is not the one that was asked for ({known.attempt})"
    elif known.outcome is Outcome.ACCEPTED:
        return state, (SendVerdict(key=key, accepted=True, detail=""),)
    else:
        detail = f"too late: {known.outcome or 'failed'}; {known.detail}"
    return state, (SendVerdict(key=key, accepted=False, detail=detail),)


def _on_stored(state: RunState, event: UpdateStored) -> Step:
    participant = open_participant(state, event.key)
    if participant is None:
        return state, ()
    state = silence.answered(state, participant.device_id)
    if state.limits.asks_once:
        state = dataclasses.replace(state, served=state.served | {participant.device_id})
    accepted = _decided(participant, Outcome.ACCEPTED, "")
    closed, more = close_if_complete(with_participants(state, {participant.device_id: accepted}))
    return closed, (SendVerdict(key=event.key, accepted=True, detail=""), *more)


def _on_refused(state: RunState, event: UpdateRejected | UpdateLate) -> Step:
    participant = open_participant(state, event.key)
    if participant is None:
        return _on_announced(state, UpdateAnnounced(key=event.key))
    state = silence.answered(state, participant.device_id)
    outcome = Outcome.REJECTED if isinstance(event, UpdateRejected) else Outcome.TIMED_OUT
    refused = _decided(participant, outcome, event.detail)
    if isinstance(event, UpdateRejected):
        refused = dataclasses.replace(refused, reason=event.reason)
    closed, more = close_if_complete(with_participants(state, {participant.device_id: refused}))
    return closed, (SendVerdict(key=event.key, accepted=False, detail=event.detail), *more)


def _decided(participant: Participant, outcome: Outcome, detail: str) -> Participant:
    return dataclasses.replace(
        participant, outcome=outcome, detail=detail, lost_at=None, silent_since=None, awaits_arm=False
    )


def _assignment(state: RunState, participant: Participant) -> SendAssignment:
    left_s = max(0.0, state.deadline_at - state.now)
    return SendAssignment(key=key_of(state, participant), arm=participant.arm, deadline_s=left_s)
