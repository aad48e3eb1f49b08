"""The context of schedulers that may know the fleet."""

from __future__ import annotations

import re

import msgspec
import pytest

from broker_server.config import CoordinatorConfig
from broker_server.emulation.clock import VirtualClock
from broker_server.emulation.context import fleet_context, scheduler_context
from broker_server.emulation.fleet import Fleet
from broker_server.errors import ConfigError
from broker_server.methods.scheduler import SchedulerContext, make_scheduler
from broker_server.methods.training import TrainingConfig
from edge_runtime.wire.arms import LORA_AXES, Axes
from edge_runtime.wire.work import Arm
from tests.broker_server import tiny
from tests.broker_server.emulation.test_fleet import make_fleet
from tests.broker_server.step_times import step_times
from tests.three_axes import AXES

ARMS = LORA_AXES.parse("0.0:3,0.5:2")
CONFIG = CoordinatorConfig(
    run_id="r",
    fleet="f",
    broker_url="",
    artifact_url="http://localhost/",
    artifact_digest="",
    num_devices=2,
    training=TrainingConfig(num_rounds=7, num_local_steps=10, batch_size=2, max_length=8),
    arms=ARMS,
)
TIMES = step_times(pruning_ratio=(0.0, 0.5), rank=(2,), step_s=(1.0, 0.5))


def a_fleet(**changes: object) -> Fleet:
    """Two devices: ``a`` of class-0, and ``b``, twice as slow, of class-1."""
    return msgspec.structs.replace(make_fleet(1, 1), members={"a": "class-0", "b": "class-1"}, jitter=0.0, **changes)


def test_true_times_follow_class_arm_and_drift() -> None:
    context = scheduler_context(CONFIG, tiny.manifest(), VirtualClock(a_fleet(), TIMES, 0))
    assert context.completion_s is not None
    times = {(device, arm, n): context.completion_s(device, arm, n) for device in "ab" for arm in ARMS for n in (1, 5)}
    assert times["b", ARMS[0], 1] == pytest.approx(2 * times["a", ARMS[0], 1], rel=1e-3)
    assert times["a", ARMS[1], 1] == pytest.approx(times["a", ARMS[0], 1] / 2, rel=1e-3)
    assert times["a", ARMS[0], 5] == pytest.approx(3 * times["a", ARMS[0], 1], rel=1e-3)
    assert (context.num_rounds, context.device_classes) == (7, {"a": "class-0", "b": "class-1"})


def test_what_is_feasible_fits_memory_and_deadline() -> None:
    slow_only_pruned = a_fleet(deadline_s=12.0)
    context = scheduler_context(CONFIG, tiny.manifest(), VirtualClock(slow_only_pruned, TIMES, 0))
    assert context.is_feasible is not None
    assert [context.is_feasible(device, arm) for device in "ab" for arm in ARMS] == [True, True, False, True]
    classes = tuple(msgspec.structs.replace(one, memory_mb=20) for one in a_fleet().classes)
    cramped = scheduler_context(CONFIG, tiny.manifest(), VirtualClock(a_fleet(classes=classes), TIMES, 0))
    assert cramped.is_feasible is not None
    assert not cramped.is_feasible("a", ARMS[1])


def test_classes_have_the_arms_of_their_file() -> None:
    classes = tuple(
        msgspec.structs.replace(one, arm=arm) for one, arm in zip(a_fleet().classes, ("0.25:8", ""), strict=True)
    )
    context = fleet_context(a_fleet(classes=classes), 3, LORA_AXES)
    assert context.class_arms == {"class-0": Arm(pruning_ratio=0.25, rank=8)}
    assert context.class_capability["class-0"] > context.class_capability["class-1"]


@pytest.mark.parametrize(
    ("axes", "arm", "fault"),
    [
        (LORA_AXES, "0.25:8,0.5:4", "has arm = '0.25:8,0.5:4': expected one arm, such as 0.25:8"),
        (LORA_AXES, "0.25:8:batch_size=2", "is not RATIO:RANK, such as 0.25:8"),
        (LORA_AXES, "0.25:513", "outside its range"),
        (AXES, "8", "is not RATIO:RANK[:batch_size=EXAMPLES], such as 0.25:8"),
    ],
)
def test_an_arm_of_a_class_is_one_that_the_method_plays(axes: Axes, arm: str, fault: str) -> None:
    def context(text: str) -> SchedulerContext:
        classes = tuple(msgspec.structs.replace(one, arm=text) for one in a_fleet().classes)
        return fleet_context(a_fleet(classes=classes), 3, axes)

    with pytest.raises(ConfigError, match=re.escape(fault)) as raised:
        context(arm)
    assert str(raised.value).startswith("class class-0 of the fleet has arm = ")
    assert context(axes.example).class_arms["class-1"] == axes.parse(axes.example)[0]


@pytest.mark.parametrize("name", ["oracle", "by_class"])
def test_a_scheduler_that_needs_a_fleet_can_be_made_with_one_only(name: str) -> None:
    make_scheduler(name, ARMS, fleet_context(a_fleet(), 3, LORA_AXES))
    with pytest.raises(ConfigError):
        make_scheduler(name, ARMS, fleet_context(None, 3, LORA_AXES))
