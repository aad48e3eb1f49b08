"""The costliest arm that a device can do: what it refuses or is late with is not asked again, nor what costs more."""

from __future__ import annotations

import numpy as np

from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import ArmOutcome, SchedulerContext, make_scheduler
from broker_server.methods.scheduler.base import Scheduler
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import FailureReason

ARMS = LORA_AXES.parse("0.5:4,0.0:8,0.25:8,0.0:4")
RNG = np.random.default_rng(0)


def made() -> Scheduler:
    return make_scheduler("costliest", ARMS, SchedulerContext(axes=LORA_AXES))


def test_a_device_goes_down_the_arms_as_it_refuses_them() -> None:
    scheduler = made()
    assert scheduler.choose(1, ["a", "b"], RNG) == {"a": ARMS[1], "b": ARMS[1]}
    played = [ARMS[1]]
    for outcome, reason in (
        (Outcome.FAILED, FailureReason.ARM_INFEASIBLE),
        (Outcome.TIMED_OUT, None),
        (Outcome.FAILED, FailureReason.ARM_INFEASIBLE),
    ):
        scheduler.observe(
            ArmOutcome(round_number=1, device_id="a", arm=played[-1], sparsity=0.0, outcome=outcome, reason=reason)
        )
        again = scheduler.choose_again(1, "a", RNG)
        assert again is not None
        played.append(again)
    assert played == [ARMS[1], ARMS[3], ARMS[2], ARMS[0]]
    restored = made()
    restored.load_json(scheduler.to_json())
    for one in (scheduler, restored):
        assert one.choose(2, ["a", "b"], RNG) == {"a": ARMS[0], "b": ARMS[1]}


def test_other_failures_do_not_make_an_arm_infeasible() -> None:
    scheduler = made()
    scheduler.observe(
        ArmOutcome(
            round_number=1,
            device_id="a",
            arm=ARMS[1],
            sparsity=0.0,
            outcome=Outcome.FAILED,
            reason=FailureReason.DISK_FULL,
        )
    )
    assert scheduler.choose(2, ["a"], RNG) == {"a": ARMS[1]}
