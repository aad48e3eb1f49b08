"""Rounds: whatever is lost, repeated or late, every round ends and no update counts twice."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    ArmsChosen,
    DeviceFailed,
    DeviceOffline,
    DeviceRegistered,
    EvaluationDone,
    Event,
    FailRun,
    FinishRound,
    FinishRun,
    Phase,
    RunState,
    SendVerdict,
    UpdateAnnounced,
    UpdateRejected,
    UpdateStored,
)
from edge_runtime.wire.messages import AssignmentKey, FailureReason
from tests.broker_server.round_desk import LIMITS, SMALL, A, B, Desk, key

# ---- any interleaving ------------------------------------------------------------------------------------------------

DEVICES = st.sampled_from([A, B, "c"])
KEYS = st.builds(
    AssignmentKey, run_id=st.just("run"), round_number=st.integers(1, 4), device_id=DEVICES, attempt=st.integers(1, 3)
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(DeviceRegistered, device_id=DEVICES),
    st.builds(DeviceOffline, device_id=DEVICES),
    st.builds(UpdateAnnounced, key=KEYS),
    st.builds(UpdateStored, key=KEYS),
    st.builds(UpdateRejected, key=KEYS, detail=st.just("wrong")),
    st.builds(DeviceFailed, key=KEYS, reason=st.sampled_from(FailureReason), detail=st.just("cannot")),
    st.builds(AggregationDone, round_number=st.integers(0, 4)),
    st.builds(EvaluationDone, round_number=st.integers(0, 4)),
    st.builds(ArmsChosen, round_number=st.integers(0, 4), arms=st.just({A: SMALL, B: None})),
)


def current(state: RunState, device_id: str) -> AssignmentKey:
    """The key of a device's present assignment, so that generated events often hit."""
    known = state.participants.get(device_id)
    return key(device_id, state.round_number or 1, known.attempt if known else 1)


ACTIONS = st.lists(
    st.one_of(
        EVENTS,
        st.floats(0.1, 60).map(lambda seconds: ("tick", seconds)),
        st.tuples(st.sampled_from(["announce", "fail", "store"]), DEVICES),
        st.tuples(st.just("pulls"), st.booleans()),
        st.tuples(st.just("cheaper"), DEVICES),
    ),
    max_size=60,
)


def play(desk: Desk, actions: Iterable[object]) -> None:
    for action in actions:
        match action:
            case ("tick", float(seconds)):
                desk.tick(seconds)
            case ("announce", str(device_id)):
                desk.feed(UpdateAnnounced(key=current(desk.state, device_id)))
            case ("store", str(device_id)):
                desk.feed(UpdateStored(key=current(desk.state, device_id)))
            case ("fail", str(device_id)):
                reason = FailureReason.ARM_INFEASIBLE
                desk.feed(DeviceFailed(key=current(desk.state, device_id), reason=reason, detail="small"))
            case ("pulls", bool(answers)):
                desk.answers_pulls = answers
            case ("cheaper", str(device_id)):
                desk.cheaper[device_id] = not desk.cheaper.get(device_id, True)
            case _:
                desk.feed(action)  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(actions=ACTIONS)
def test_any_interleaving_ends_and_counts_every_update_at_most_once(actions: list[object]) -> None:
    desk = Desk()
    play(desk, actions)
    for _ in range(2 * (LIMITS.num_rounds + 1)):  # from here on only time passes: a wait and a deadline a round
        desk.tick(200)
    assert desk.state.phase in {Phase.FINISHED, Phase.FAILED}
    assert len(desk.sent(FinishRun)) + len(desk.sent(FailRun)) == 1
    finished = [c.round_number for c in desk.commands if isinstance(c, FinishRound)]
    assert finished == list(range(len(finished)))
    counted = [one for c in desk.commands if isinstance(c, Aggregate) for one in c.keys]
    assert len(counted) == len({(one.round_number, one.device_id) for one in counted})
    assert set(counted) <= desk.stored
    confirmed = {c.key for c in desk.commands if isinstance(c, SendVerdict) and c.accepted}
    assert confirmed <= desk.stored


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS)
def test_every_stored_update_is_aggregated_in_its_round(actions: list[object]) -> None:
    desk = Desk()
    play(desk, actions)
    for _ in range(2 * (LIMITS.num_rounds + 1)):
        desk.tick(200)
    counted = {one for c in desk.commands if isinstance(c, Aggregate) for one in c.keys}
    assert counted == desk.stored
