"""A reply that a scheduler cannot use costs that reply, never the run."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import (
    SCHEDULERS,
    ArmOutcome,
    GuardedScheduler,
    Scheduler,
    SchedulerContext,
    make_scheduler,
)
from edge_runtime.bounds import limits
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.work import Arm

ARMS = LORA_AXES.parse("0.0:8,0.25:8,0.5:4")
DEVICES = ["board-0", "board-1", "board-2"]
CONTEXT = SchedulerContext(
    num_rounds=10,
    device_classes=dict.fromkeys(DEVICES, "board"),
    class_capability={"board": 1.0},
    completion_s=lambda _, arm, __: 2.0 - arm.pruning_ratio,
)


def make(name: str) -> Scheduler:
    return make_scheduler(name, ARMS, CONTEXT)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def claims(train_s: float) -> Measurements:
    return Measurements(
        train_s=train_s,
        step_s_p50=train_s,
        step_s_p95=train_s,
        fetch_s=0.0,
        prepare_s=0.0,
        evaluate_s=train_s,
        peak_rss_bytes=limits.MAX_BYTES,
        bytes_up=limits.MAX_BYTES,
        bytes_down=0,
    )


def reply(device_id: str, arm: Arm, train_s: float, **more: Any) -> ArmOutcome:
    return ArmOutcome(
        round_number=1,
        device_id=device_id,
        arm=arm,
        sparsity=arm.pruning_ratio,
        outcome=Outcome.ACCEPTED,
        measurements=claims(train_s),
        **more,
    )


def play(scheduler: GuardedScheduler | Scheduler, round_number: int, times: list[float], **more: Any) -> None:
    arms = scheduler.choose(round_number, DEVICES, rng(round_number))
    assert sorted(arms) == DEVICES
    assert all(0.0 <= arm.pruning_ratio <= 0.5 and 4 <= arm.rank <= 8 for arm in arms.values())
    outcomes = [reply(one, arms[one], seconds, **more) for one, seconds in zip(DEVICES, times, strict=True)]
    for outcome in outcomes:
        scheduler.observe(outcome)
    scheduler.observe_round(outcomes)


@pytest.mark.parametrize("seconds", [1e308, 1e200, math.inf, math.nan, 1e-300, 0.0, -1.0, 2**63])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_time_that_no_device_can_have_is_not_learnt_from(name: str, seconds: float) -> None:
    guarded = GuardedScheduler(lambda: make(name))
    for round_number in range(1, 5):
        play(guarded, round_number, [1.0, seconds, 2.0])
    state = json.loads(json.dumps(guarded.to_json(), allow_nan=False))
    again = GuardedScheduler(lambda: make(name), state)
    assert again.choose(5, DEVICES, rng()) == guarded.choose(5, DEVICES, rng())


def test_the_scheduler_itself_ends_at_such_a_time() -> None:
    """The reason for the guard: without it the numbers overflow, and every later start of the run ends there."""
    scheduler = make("fedspine")
    with np.errstate(all="ignore"):
        play(scheduler, 1, [1.0, 1e308, 2.0])
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="zero-size array"):
        play(scheduler, 2, [1.0, 1e308, 2.0])


def test_the_other_replies_of_the_round_are_learnt_from(caplog: pytest.LogCaptureFixture) -> None:
    guarded = GuardedScheduler(lambda: make("fedspine"))
    with caplog.at_level(logging.WARNING):
        play(guarded, 1, [1.0, 1e308, 2.0])
    assert sorted(guarded.to_json()["time"]["seen"]) == ["board-0", "board-2"]
    (line,) = caplog.messages
    assert "board-1" in line


@settings(deadline=None, max_examples=30)
@given(
    times=st.lists(
        st.lists(st.floats(1e-6, limits.LONGEST_S), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
    losses=st.tuples(*[st.floats(-limits.MAX_FLOAT32, limits.MAX_FLOAT32)] * 2),
    delta=st.floats(0, 1e12),
)
@example(  # eight orders of magnitude between two devices
    times=[[358981425.0, 1.0, 1.0], [297665269.0, 0.5, 1.0], [358981411.0, 1.0, 1.0], [1.0, 2.0, 0.5]],
    losses=(0.0, 0.0),
    delta=0.0,
)
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_whatever_messages_let_through_can_be_digested(
    name: str, times: list[list[float]], losses: tuple[float, float], delta: float
) -> None:
    """Of each scheduler itself, with nothing before it."""
    scheduler = make(name)
    local = LocalEvaluation(
        num_targets=1, loss_before=losses[0], loss_after=losses[1], accuracy_before=0.0, accuracy_after=1.0
    )
    for round_number, seconds in enumerate(times, start=1):
        play(scheduler, round_number, seconds, evaluation=local, adapter_delta=delta)
    state = json.dumps(scheduler.to_json(), allow_nan=False)
    again = make(name)
    again.load_json(json.loads(state))
    assert json.dumps(again.to_json()) == state


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["time"]["seen"]["board-1"].__setitem__(1, [1e308] * 3),
        lambda state: state["time"]["theta"].__setitem__("board-1", [math.inf] * 4),
        lambda state: state["time"]["theta"].__setitem__("board-1", [None] * 4),
        lambda state: state["time"]["seen"].__setitem__("board-1", None),
        lambda state: state.pop("gain"),
        lambda state: state.update(infeasible=[1, 2]),
        lambda state: state["gain"].clear(),
    ],
    ids=["time", "infinite", "null", "nothing", "missing", "other type", "empty"],
)
def test_a_state_that_cannot_be_used_is_given_up_with_a_line(damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    guarded = GuardedScheduler(lambda: make("fedspine"))
    for round_number in (1, 2, 3):
        play(guarded, round_number, [1.0, 1.5, 2.0])
    state = guarded.to_json()
    damage(state)
    with caplog.at_level(logging.WARNING):
        again = GuardedScheduler(lambda: make("fedspine"), state)
        for round_number in (4, 5):
            play(again, round_number, [1.0, 1.5, 2.0])
    assert any("fedspine" in line for line in caplog.messages)


def test_a_reply_that_cannot_be_learnt_from_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = GuardedScheduler(lambda: make("fedspine"))
    play(guarded, 1, [1.0, 1.5, 2.0])
    kept = json.dumps(guarded.to_json())
    honest = reply("board-0", ARMS[0], 1.0)
    guarded.choose(2, DEVICES, rng())
    guarded.observe(honest)
    expected = guarded.to_json()["time"]
    bad = reply("board-1", ARMS[0], 1.0)
    real = type(make("fedspine")).observe

    def fragile(self: Any, outcome: ArmOutcome) -> None:
        real(self, outcome)
        if outcome is bad:
            raise FloatingPointError

    monkeypatch.setattr(type(make("fedspine")), "observe", fragile)
    guarded.observe(bad)
    assert guarded.to_json()["time"] == expected != json.loads(kept)["time"]
