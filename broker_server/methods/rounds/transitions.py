"""Transitions between rounds: the begin of a round, its completion, and the end of a run. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    ChooseArms,
    Command,
    Evaluate,
    EvaluationDone,
    FailRun,
    FinishRound,
    FinishRun,
    Outcome,
    Participant,
    Phase,
    RunState,
    SendCancel,
)
from edge_runtime.wire.messages import AssignmentKey, FailureReason

Step = tuple[RunState, tuple[Command, ...]]

MAX_EMPTY_ROUNDS = 3
"""Rounds in a row without a usable update that end a run."""
FORGET_AFTER = 8
"""Rounds after which a device's misses are forgotten."""
MAX_REASONS = 8
"""Reasons that the message of a failed run names."""


def wait(state: RunState, num_devices: int) -> Step:
    """Wait for devices: before the first round of a process for the registration timeout, later for a moment."""
    deadline_at = state.now + state.limits.registration_timeout_s
    state = dataclasses.replace(
        state,
        phase=Phase.WAITING,
        participants={},
        called=frozenset(),
        misses={name: miss for name, miss in state.misses.items() if miss.until + FORGET_AFTER > state.round_number},
        num_awaited=num_devices,
        patient_until=state.now + state.limits.rejoin_s if state.has_assembled else deadline_at,
        deadline_at=deadline_at,
    )
    return begin_if_ready(state)


def begin_if_ready(state: RunState) -> Step:
    """Begin the round if enough devices are available or served; fail if none came in time."""
    asked = state.eligible or state.online - state.served
    num_ready = len(asked) + len(state.served)
    if num_ready and (num_ready >= state.num_awaited or state.now >= state.patient_until):
        chosen = ChooseArms(round_number=state.round_number, device_ids=tuple(sorted(asked)))
        return dataclasses.replace(state, phase=Phase.CHOOSING, has_assembled=True), (chosen,)
    if state.now < state.deadline_at:
        return state, ()
    waited = f"no device for round {state.round_number} within {state.limits.registration_timeout_s:g} s"
    return _fail(state, waited, [f"{device_id}: {why}" for device_id, why in sorted(state.farewells.items())])


def close_if_complete(state: RunState) -> Step:
    """Aggregate once no participant is open."""
    if any(participant.is_open for participant in state.participants.values()):
        return state, ()
    keys = tuple(key_of(state, p) for p in state.participants.values() if p.outcome is Outcome.ACCEPTED)
    cancelled = tuple(
        SendCancel(key=key_of(state, p), detail="the round went on")
        for p in state.participants.values()
        if p.outcome is Outcome.LOST
    )
    state = dataclasses.replace(state, phase=Phase.AGGREGATING)
    return state, (*cancelled, Aggregate(round_number=state.round_number, keys=keys))


def on_aggregated(state: RunState, event: AggregationDone) -> Step:
    """Evaluate the aggregate."""
    if state.phase is not Phase.AGGREGATING or event.round_number != state.round_number:
        return state, ()
    is_last = state.round_number == state.limits.num_rounds
    evaluate = Evaluate(round_number=state.round_number, is_last=is_last)
    return dataclasses.replace(_count_empty(state, event.discarded), phase=Phase.EVALUATING), (evaluate,)


def _count_empty(state: RunState, discarded: str) -> RunState:
    """Count rounds in a row without a usable update, with their reasons."""
    num_used = state.num_standing + sum(p.outcome is Outcome.ACCEPTED for p in state.participants.values())
    if num_used and not discarded:
        return dataclasses.replace(
            state, num_used_rounds=state.num_used_rounds + 1, num_empty_rounds=0, empty_reasons=()
        )
    if num_used:
        reasons = [f"{num_used} {'update was' if num_used == 1 else 'updates were'} not used ({discarded})"]
    else:
        reasons = [f"{p.device_id}: {p.outcome} ({p.detail})" for p in state.participants.values()]
    return dataclasses.replace(
        state,
        num_empty_rounds=state.num_empty_rounds + 1,
        empty_reasons=(*state.empty_reasons, *reasons)[-MAX_REASONS:],
    )


def on_evaluated(state: RunState, event: EvaluationDone) -> Step:
    """Finish the round; begin the next one, or end the run."""
    if state.phase is not Phase.EVALUATING or event.round_number != state.round_number:
        return state, ()
    finish = FinishRound(round_number=state.round_number, participants=tuple(state.participants.values()))
    if state.num_empty_rounds >= MAX_EMPTY_ROUNDS:
        what = f"{state.num_empty_rounds} rounds in a row without an update that could be used"
        failed, commands = _fail(state, what, [])
        return failed, (finish, *commands)
    if state.round_number == state.limits.num_rounds:
        ended, commands = end(state)
        return ended, (finish, *commands)
    next_state = dataclasses.replace(state, round_number=state.round_number + 1)
    waiting, commands = wait(next_state, _num_awaited(state))
    return waiting, (finish, *commands)


def end(state: RunState) -> Step:
    """End a run after its last round: as failed if no round had a usable update, else as finished."""
    if state.num_used_rounds > 0:
        return dataclasses.replace(state, phase=Phase.FINISHED), (FinishRun(),)
    rounds = "round" if state.limits.num_rounds == 1 else f"{state.limits.num_rounds} rounds"
    what = (
        f"no update of the {rounds} could be used, the adapter is still that of before training: fix the cause, then "
        "start again, or resume with more rounds"
    )
    return _fail(state, what, [])


def _num_awaited(state: RunState) -> int:
    """Number of devices that the next round waits for: as many as answered so far, without lost devices."""
    if state.round_number == 0:
        return state.limits.num_devices
    answered = {Outcome.ACCEPTED, Outcome.REJECTED, Outcome.FAILED}
    return max(1, state.num_standing + sum(p.outcome in answered for p in state.participants.values()))


def _fail(state: RunState, what: str, reasons: list[str]) -> Step:
    if state.participants and all(p.reason is FailureReason.DIVERGED for p in state.participants.values()):
        what = f"training diverged in round {state.round_number}: lower the learning rate; {what}"
    known = "; ".join((*state.empty_reasons, *reasons)[-MAX_REASONS:]) or "no device said why"
    reasons_given = {p.reason for p in state.participants.values()}
    reason = reasons_given.pop() if len(reasons_given) == 1 else None
    return dataclasses.replace(state, phase=Phase.FAILED), (FailRun(detail=f"{what}: {known}", reason=reason),)


def with_participants(state: RunState, changed: Mapping[str, Participant]) -> RunState:
    """The state with some participants changed."""
    return dataclasses.replace(
        state, participants={**state.participants, **changed}, touched=(*state.touched, *changed)
    )


def key_of(state: RunState, participant: Participant) -> AssignmentKey:
    """Identity of a participant's update in the current round."""
    return AssignmentKey(
        run_id=state.limits.run_id,
        round_number=state.round_number,
        device_id=participant.device_id,
        attempt=participant.attempt,
    )
