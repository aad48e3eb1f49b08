"""The rounds of a run as a pure state machine: events in, a new state and commands out; no clock, I/O or chance inside.

    EVALUATING (round 0) -> WAITING -> CHOOSING -> COLLECTING -> AGGREGATING -> EVALUATING -> WAITING -> ... -> FINISHED
                               |                       ^    |                                   |
                               v                       +----+ an arm too large is chosen again  v
                             FAILED (no device in time)                            FAILED (too many empty rounds)

The coordinator executes the commands and answers with events: :class:`ChooseArms` with :class:`ArmsChosen`,
:class:`PullUpdate` with :class:`UpdateStored`, :class:`UpdateRejected` or :class:`UpdateLate`, :class:`Aggregate` with
:class:`AggregationDone`, :class:`Evaluate` with :class:`EvaluationDone`. Time enters only with :class:`Tick`.
Events may be lost, repeated or late; each has a decided answer. An update counts once, by its :class:`UpdateKey`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from broker_server.rounds.types import (
    Aggregate,
    AggregationDone,
    AnswerOldUpdate,
    ArmsChosen,
    ChooseArmAgain,
    ChooseArms,
    Command,
    DeviceFailed,
    DeviceOffline,
    DeviceRegistered,
    Evaluate,
    EvaluationDone,
    Event,
    FailRun,
    FinishRound,
    FinishRun,
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
    UpdateKey,
    UpdateLate,
    UpdateRejected,
    UpdateStored,
)
from edge_runtime.wire.messages import FailureReason

Step = tuple[RunState, tuple[Command, ...]]

MAX_EMPTY_ROUNDS = 3
"""Rounds in a row without any update that could be used, which end a run."""
MAX_ATTEMPTS = 3
"""Assignments that one device may get in one round (the later ones with cheaper arms)."""
MAX_REASONS = 8
"""Reasons that the message of a failed run names."""


def start(limits: RoundLimits, now: float) -> Step:
    """Begin a run: the adapter is evaluated before training (round 0), while devices register."""
    state = RunState(limits=limits, phase=Phase.EVALUATING, now=now, round_number=0)
    return state, (Evaluate(round_number=0, is_last=False),)


def resume(limits: RoundLimits, now: float, finished: int, participants: Mapping[str, Participant] | None) -> Step:
    """Go on with a run after a restart of the coordinator.

    Args:
        limits: as in :func:`start`.
        now: monotonic seconds.
        finished: number of the last round that was finished (0: the evaluation before training).
        participants: those of round ``finished + 1`` when it had begun, by device id. Open ones get
            ``registration_timeout_s`` to come back, and then their assignment again, as the same attempt.
    """
    if finished >= limits.num_rounds:
        return RunState(limits=limits, phase=Phase.FINISHED, now=now, round_number=finished), (FinishRun(),)
    state = RunState(limits=limits, phase=Phase.WAITING, now=now, round_number=finished + 1)
    if participants is None:
        return _wait(state, limits.num_devices)
    back_by = now + limits.registration_timeout_s
    waiting = {
        device_id: dataclasses.replace(p, lost_at=back_by) if p.is_open else p for device_id, p in participants.items()
    }
    state = dataclasses.replace(
        state, phase=Phase.COLLECTING, participants=waiting, deadline_at=now + limits.round_deadline_s
    )
    return _close_if_complete(state)


def advance(state: RunState, event: Event) -> Step:  # noqa: C901, PLR0911 - one return for each event
    """The next state, and what to do; commands are to be executed in order, after the state was saved."""
    match event:
        case Tick():
            return _on_tick(state, event)
        case DeviceRegistered():
            return _on_registered(state, event)
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
            return _on_aggregated(state, event)
        case EvaluationDone():
            return _on_evaluated(state, event)


def open_participant(state: RunState, key: UpdateKey) -> Participant | None:
    """The participant whose update ``key`` would still count; None when it would not."""
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
        return _begin_if_ready(state)
    if state.phase is not Phase.COLLECTING:
        return state, ()
    changed: dict[str, Participant] = {}
    commands: list[Command] = []
    for device_id, participant in state.participants.items():
        if not participant.is_open:
            continue
        if state.now >= state.deadline_at:
            detail = participant.detail or f"no update within {state.limits.round_deadline_s:g} s"
            changed[device_id] = _decided(participant, Outcome.TIMED_OUT, detail)
            commands.append(SendCancel(key=_key(state, participant), detail="the round's deadline passed"))
        elif participant.lost_at is not None and state.now >= participant.lost_at:
            changed[device_id] = _decided(participant, Outcome.LOST, participant.detail or "went offline")
    if not changed:
        return state, ()
    closed, more = _close_if_complete(_with_participants(state, changed))
    return closed, (*commands, *more)


# ---- devices ---------------------------------------------------------------------------------------------------------


def _on_registered(state: RunState, event: DeviceRegistered) -> Step:
    farewells = {device_id: why for device_id, why in state.farewells.items() if device_id != event.device_id}
    state = dataclasses.replace(state, online=state.online | {event.device_id}, farewells=farewells)
    if state.phase is Phase.WAITING:
        return _begin_if_ready(state)
    participant = state.participants.get(event.device_id)
    if state.phase is not Phase.COLLECTING or participant is None or participant.awaits_arm:
        return state, ()
    if participant.outcome not in {None, Outcome.LOST}:
        return state, ()
    back = dataclasses.replace(participant, outcome=None, detail="", lost_at=None)
    state = _with_participants(state, {event.device_id: back})
    return state, (_assignment(state, back),)


def _on_offline(state: RunState, event: DeviceOffline) -> Step:
    state = dataclasses.replace(
        state, online=state.online - {event.device_id}, farewells={**state.farewells, event.device_id: event.detail}
    )
    participant = state.participants.get(event.device_id)
    if state.phase is not Phase.COLLECTING or participant is None or not participant.is_open:
        return state, ()
    if participant.lost_at is not None:
        return state, ()
    gone = dataclasses.replace(participant, lost_at=state.now + state.limits.rejoin_s, detail=event.detail)
    return _with_participants(state, {event.device_id: gone}), ()


def _on_arms_chosen(state: RunState, event: ArmsChosen) -> Step:
    if event.round_number != state.round_number:
        return state, ()
    if state.phase is Phase.COLLECTING:
        return _on_chosen_again(state, event)
    if state.phase is not Phase.CHOOSING:
        return state, ()
    back_by = state.now + state.limits.rejoin_s
    participants = {
        device_id: Participant(
            device_id=device_id, attempt=1, arm=arm, lost_at=None if device_id in state.online else back_by
        )
        for device_id, arm in sorted(event.arms.items())
        if arm is not None
    }
    state = dataclasses.replace(
        state,
        phase=Phase.COLLECTING,
        participants=participants,
        deadline_at=state.now + state.limits.round_deadline_s,
    )
    commands = tuple(_assignment(state, p) for p in participants.values() if p.lost_at is None)
    closed, more = _close_if_complete(state)
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
        lost_at = None if device_id in state.online else state.now + state.limits.rejoin_s
        changed[device_id] = Participant(device_id=device_id, attempt=participant.attempt + 1, arm=arm, lost_at=lost_at)
    state = _with_participants(state, changed)
    commands = tuple(_assignment(state, p) for p in changed.values() if p.is_open and p.lost_at is None)
    closed, more = _close_if_complete(state)
    return closed, (*commands, *more)


def _on_failed(state: RunState, event: DeviceFailed) -> Step:
    participant = open_participant(state, event.key)
    if participant is None:
        return state, ()
    failed = dataclasses.replace(
        _decided(participant, Outcome.FAILED, f"{event.reason}: {event.detail}"), reason=event.reason
    )
    if event.reason is FailureReason.INSUFFICIENT_MEMORY and participant.attempt < MAX_ATTEMPTS:
        failed = dataclasses.replace(failed, outcome=None, awaits_arm=True)
        state = _with_participants(state, {failed.device_id: failed})
        return state, (ChooseArmAgain(round_number=state.round_number, device_id=failed.device_id),)
    return _close_if_complete(_with_participants(state, {failed.device_id: failed}))


# ---- updates ---------------------------------------------------------------------------------------------------------


def _on_announced(state: RunState, event: UpdateAnnounced) -> Step:
    key = event.key
    if key.round_number > state.round_number:
        detail = f"round {key.round_number} has not begun"
        return state, (SendVerdict(key=key, accepted=False, detail=detail),)
    if state.phase is not Phase.COLLECTING or key.round_number < state.round_number:
        return state, (AnswerOldUpdate(key=key),)
    if (participant := open_participant(state, key)) is not None:
        announced = dataclasses.replace(participant, outcome=None, detail="", lost_at=None)
        return _with_participants(state, {key.device_id: announced}), (PullUpdate(key=key),)
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
    accepted = _decided(participant, Outcome.ACCEPTED, "")
    closed, more = _close_if_complete(_with_participants(state, {participant.device_id: accepted}))
    return closed, (SendVerdict(key=event.key, accepted=True, detail=""), *more)


def _on_refused(state: RunState, event: UpdateRejected | UpdateLate) -> Step:
    participant = open_participant(state, event.key)
    if participant is None:
        return _on_announced(state, UpdateAnnounced(key=event.key))
    outcome = Outcome.REJECTED if isinstance(event, UpdateRejected) else Outcome.TIMED_OUT
    refused = _decided(participant, outcome, event.detail)
    closed, more = _close_if_complete(_with_participants(state, {participant.device_id: refused}))
    return closed, (SendVerdict(key=event.key, accepted=False, detail=event.detail), *more)


# ---- from round to round ---------------------------------------------------------------------------------------------


def _wait(state: RunState, num_devices: int) -> Step:
    """Wait for devices: the first round of a process as long as devices may take to register, later ones a moment."""
    deadline_at = state.now + state.limits.registration_timeout_s
    state = dataclasses.replace(
        state,
        phase=Phase.WAITING,
        participants={},
        num_awaited=num_devices,
        patient_until=state.now + state.limits.rejoin_s if state.has_assembled else deadline_at,
        deadline_at=deadline_at,
    )
    return _begin_if_ready(state)


def _begin_if_ready(state: RunState) -> Step:
    if len(state.online) >= state.num_awaited or (state.online and state.now >= state.patient_until):
        chosen = ChooseArms(round_number=state.round_number, device_ids=tuple(sorted(state.online)))
        return dataclasses.replace(state, phase=Phase.CHOOSING, has_assembled=True), (chosen,)
    if state.now < state.deadline_at:
        return state, ()
    waited = f"no device for round {state.round_number} within {state.limits.registration_timeout_s:g} s"
    return _fail(state, waited, [f"{device_id}: {why}" for device_id, why in sorted(state.farewells.items())])


def _close_if_complete(state: RunState) -> Step:
    if any(participant.is_open for participant in state.participants.values()):
        return state, ()
    keys = tuple(_key(state, p) for p in state.participants.values() if p.outcome is Outcome.ACCEPTED)
    cancelled = tuple(
        SendCancel(key=_key(state, p), detail="the round went on")
        for p in state.participants.values()
        if p.outcome is Outcome.LOST
    )
    state = dataclasses.replace(state, phase=Phase.AGGREGATING)
    return state, (*cancelled, Aggregate(round_number=state.round_number, keys=keys))


def _on_aggregated(state: RunState, event: AggregationDone) -> Step:
    if state.phase is not Phase.AGGREGATING or event.round_number != state.round_number:
        return state, ()
    is_last = state.round_number == state.limits.num_rounds
    evaluate = Evaluate(round_number=state.round_number, is_last=is_last)
    return dataclasses.replace(_count_empty(state, event.discarded), phase=Phase.EVALUATING), (evaluate,)


def _count_empty(state: RunState, discarded: str) -> RunState:
    """Count the rounds in a row that taught nothing, and keep why."""
    accepted = [p for p in state.participants.values() if p.outcome is Outcome.ACCEPTED]
    if accepted and not discarded:
        return dataclasses.replace(state, num_empty_rounds=0, empty_reasons=())
    if accepted:
        reasons = [f"{len(accepted)} updates were not used ({discarded})"]
    else:
        reasons = [f"{p.device_id}: {p.outcome} ({p.detail})" for p in state.participants.values()]
    return dataclasses.replace(
        state,
        num_empty_rounds=state.num_empty_rounds + 1,
        empty_reasons=(*state.empty_reasons, *reasons)[-MAX_REASONS:],
    )


def _on_evaluated(state: RunState, event: EvaluationDone) -> Step:
    if state.phase is not Phase.EVALUATING or event.round_number != state.round_number:
        return state, ()
    finish = FinishRound(round_number=state.round_number, participants=tuple(state.participants.values()))
    if state.num_empty_rounds >= MAX_EMPTY_ROUNDS:
        what = f"{state.num_empty_rounds} rounds in a row without an update that could be used"
        if state.participants and all(p.reason is FailureReason.DIVERGED for p in state.participants.values()):
            what = f"training diverged in round {state.round_number}: lower the learning rate; {what}"
        failed, commands = _fail(state, what, [])
        return failed, (finish, *commands)
    if state.round_number == state.limits.num_rounds:
        return dataclasses.replace(state, phase=Phase.FINISHED), (finish, FinishRun())
    next_state = dataclasses.replace(state, round_number=state.round_number + 1)
    waiting, commands = _wait(next_state, _num_awaited(state))
    return waiting, (finish, *commands)


def _num_awaited(state: RunState) -> int:
    """Devices that the next round waits for: as many as answered in this one, so that none that is lost is."""
    if state.round_number == 0:
        return state.limits.num_devices
    answered = {Outcome.ACCEPTED, Outcome.REJECTED, Outcome.FAILED}
    return max(1, sum(participant.outcome in answered for participant in state.participants.values()))


def _fail(state: RunState, what: str, reasons: list[str]) -> Step:
    known = "; ".join((*state.empty_reasons, *reasons)[-MAX_REASONS:]) or "no device said why"
    return dataclasses.replace(state, phase=Phase.FAILED), (FailRun(detail=f"{what}: {known}"),)


def _decided(participant: Participant, outcome: Outcome, detail: str) -> Participant:
    return dataclasses.replace(participant, outcome=outcome, detail=detail, lost_at=None, awaits_arm=False)


def _with_participants(state: RunState, changed: Mapping[str, Participant]) -> RunState:
    return dataclasses.replace(state, participants={**state.participants, **changed})


def _key(state: RunState, participant: Participant) -> UpdateKey:
    return UpdateKey(round_number=state.round_number, device_id=participant.device_id, attempt=participant.attempt)


def _assignment(state: RunState, participant: Participant) -> SendAssignment:
    left_s = max(0.0, state.deadline_at - state.now)
    return SendAssignment(key=_key(state, participant), arm=participant.arm, deadline_s=left_s)
