"""The virtual clock: the formula, drift, availability, and the same answers after a restart."""

from __future__ import annotations

import math

import msgspec
import pytest

from broker_server.emulation.clock import VirtualClock, round_s
from broker_server.methods.pruning.schedule import Segment
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm
from tests.broker_server.emulation.test_fleet import IDS, make_fleet
from tests.broker_server.step_times import step_times
from tests.three_axes import AXES

TIMES = step_times(pruning_ratio=(0.0, 0.5), rank=(2, 8), step_s=(1.0, 1.6, 0.5, 0.8))
FLEET = msgspec.structs.replace(make_fleet(1, 1), jitter=0.0).dealt(IDS)
SLOW = IDS[-1]  # of class-1, factor 2


def key(device_id: str, round_number: int = 1, attempt: int = 1) -> AssignmentKey:
    return AssignmentKey(run_id="run", round_number=round_number, device_id=device_id, attempt=attempt)


def completion(clock: VirtualClock, of: AssignmentKey, *segments: Segment) -> float:
    return clock.completion_s(
        of, Arm(pruning_ratio=0.0, rank=8), segments, 10, bytes_down=4_000_000, bytes_up=1_000_000
    )


def test_steps_and_bytes_add_up() -> None:
    clock = VirtualClock(FLEET, TIMES, seed=0)
    seconds = completion(
        clock, key(SLOW), Segment(at_step=1, pruning_ratio=0.0), Segment(at_step=5, pruning_ratio=0.25)
    )
    down_s, steps_s, up_s = 32 / 16, 2 * (4 * 1.6 + 6 * 1.2), 8 / 8
    assert seconds == pytest.approx(down_s + steps_s + up_s)


def test_a_class_that_slows_down_does_so_from_its_round_on() -> None:
    clock = VirtualClock(FLEET, TIMES, seed=0)
    whole = Segment(at_step=1, pruning_ratio=0.0)
    before, after = (completion(clock, key(SLOW, n), whole) - 3 for n in (4, 5))
    assert after == pytest.approx(3 * before)


def test_what_the_oracle_is_told_is_the_mean_of_what_happens() -> None:
    clock = VirtualClock(FLEET, TIMES, seed=0)
    expected = clock.expected_s(SLOW, Arm(pruning_ratio=0.5, rank=8), 1, 10, 1_000_000)
    assert expected == pytest.approx(2 * 10 * 0.8 + 8 / 16 + 8 / 8)


def test_times_between_grid_points_and_beyond() -> None:
    def at(text: str) -> list[float]:
        return [TIMES.at(arm) for arm in LORA_AXES.parse(text)]

    assert at("0.0:2,0.25:2,0.5:2,0.9:2") == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert at("0.0:1,0.0:2,0.0:5,0.0:8,0.0:64") == pytest.approx([1.0, 1.0, 1.3, 1.6, 1.6])
    assert at("0.25:5") == pytest.approx([(1.3 + 0.65) / 2])


def test_times_over_a_third_axis() -> None:
    times = step_times(pruning_ratio=(0.0, 0.5), batch_size=(2, 8), step_s=(1.0, 4.0, 0.5, 2.0))
    arms = AXES.parse("0.0:4:batch_size=2,0.0:4:batch_size=5,0.0:64,0.25:4:batch_size=5")
    assert [times.at(arm, AXES) for arm in arms] == pytest.approx([1.0, 2.5, 4.0, 1.875])


def test_jitter_is_of_the_seed_and_of_each_assignment() -> None:
    fleet = msgspec.structs.replace(FLEET, jitter=0.1)
    whole = Segment(at_step=1, pruning_ratio=0.0)
    clock, again, other = (VirtualClock(fleet, TIMES, seed=seed) for seed in (0, 0, 1))
    keys = [key(SLOW, n, attempt) for n in range(1, 200) for attempt in (1, 2)]
    steps = [completion(clock, k, whole) for k in keys]
    assert steps[::-1] == [completion(again, k, whole) for k in keys[::-1]]
    assert steps != [completion(other, k, whole) for k in keys]
    early = [math.log((s - 3) / 32) for s, k in zip(steps, keys, strict=True) if k.round_number < 5]
    assert len(set(early)) == len(early)
    assert max(abs(value) for value in early) < 0.5


def test_availability_is_a_share_of_the_rounds() -> None:
    classes = (msgspec.structs.replace(FLEET.classes[0], availability=0.25), FLEET.classes[1])
    clock = VirtualClock(msgspec.structs.replace(FLEET, classes=classes), TIMES, seed=3)
    there = [clock.available(n, IDS) for n in range(1, 301)]
    assert all(set(IDS[5:]) <= set(ids) for ids in there)
    share = sum(IDS[0] in ids for ids in there) / len(there)
    assert 0.15 < share < 0.35
    assert there[7] == clock.available(8, IDS)


def test_one_device_is_there_where_chance_leaves_none() -> None:
    classes = tuple(msgspec.structs.replace(one, availability=1e-9) for one in FLEET.classes)
    clock = VirtualClock(msgspec.structs.replace(FLEET, classes=classes), TIMES, seed=0)
    chosen = {clock.available(n, IDS) for n in range(1, 50)}
    assert {len(ids) for ids in chosen} == {1}
    assert len(chosen) > 3


def test_a_round_is_as_long_as_its_slowest_device_or_its_deadline() -> None:
    assert round_s({"a": 3.0, "b": None, "c": 5.0}, math.inf) == 5.0
    assert round_s({"a": 3.0, "c": 5.0}, 4.0) == 4.0
    assert round_s({"a": None}, math.inf) == 0.0
