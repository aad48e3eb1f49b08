"""Thresholds with hysteresis, reading by reading."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.board.errors import NoSensorError
from edge_runtime.board.guard import CALM_S, Guard, PauseLimits
from edge_runtime.board.sensors import Battery, Reading
from edge_runtime.errors import ExitCode


def reading(temperature_c: float | None = None, throttling: str | None = None, **battery: Any) -> Reading:
    given = {"is_full": False, "is_discharging": True, **battery}
    return Reading(
        temperature_c=temperature_c, throttling=throttling, battery=Battery(**given) if "percent" in battery else None
    )


def paused(guard: Guard, *readings: Reading) -> list[bool]:
    return [guard.judge(each, 0.0) is not None for each in readings]


def test_hot_until_five_degrees_cooler() -> None:
    guard = Guard(PauseLimits(max_temperature_c=80.0))
    temperatures = (79.9, 80.0, 80.1, 79.0, 75.1, 75.0, 79.9, 81.0)
    assert paused(guard, *map(reading, temperatures)) == [False, False, True, True, True, False, False, True]


def test_a_sensor_that_is_gone_is_no_reason() -> None:
    guard = Guard(PauseLimits(max_temperature_c=80.0, min_battery_percent=20.0, on_battery=True, on_throttling=True))
    assert paused(guard, reading(90.0, ""), reading()) == [True, False]


def test_low_until_five_points_more() -> None:
    guard = Guard(PauseLimits(min_battery_percent=30.0))
    given = [(30, True), (29, True), (31, True), (31, False), (34, False), (35, False), (31, True)]
    readings = [reading(percent=float(percent), is_discharging=is_used) for percent, is_used in given]
    assert paused(guard, *readings) == [False, True, True, True, True, False, False]


def test_a_low_battery_beside_a_supply_is_no_reason_to_begin_a_pause() -> None:
    assert paused(Guard(PauseLimits(min_battery_percent=30.0)), reading(percent=5.0, is_discharging=False)) == [False]


def test_a_battery_that_takes_no_more_is_full_enough() -> None:
    """Many stop at 80 or 99 percent, to last longer."""
    guard = Guard(PauseLimits(min_battery_percent=90.0))
    readings = (
        reading(percent=85.0),
        reading(percent=80.0, is_discharging=False),
        reading(percent=80.0, is_discharging=False, is_full=True),
    )
    assert paused(guard, *readings) == [True, True, False]


def test_the_charge_to_go_on_at_is_one_that_can_be_reached() -> None:
    guard = Guard(PauseLimits(min_battery_percent=98.0))
    assert "goes on at 100 %" in str(guard.judge(reading(percent=97.0), 0.0))
    assert guard.judge(reading(percent=100.0, is_discharging=False), 0.0) is None


def test_unplugged_is_enough_when_asked_for() -> None:
    guard = Guard(PauseLimits(on_battery=True))
    assert paused(guard, reading(percent=99.0), reading(percent=9.0, is_discharging=False)) == [True, False]


def test_throttling_must_have_been_gone_for_a_while() -> None:
    guard = Guard(PauseLimits(on_throttling=True))
    assert guard.judge(reading(throttling=""), 0.0) is None
    assert guard.judge(reading(throttling="throttled"), 10.0) == "slowed down (throttled)"
    assert guard.judge(reading(throttling=""), 10.0 + CALM_S - 0.1) == "slowed down (throttled)"
    assert guard.judge(reading(throttling=""), 10.0 + CALM_S) is None


def test_nothing_is_a_reason_that_was_not_asked_for() -> None:
    assert paused(Guard(PauseLimits()), reading(140.0, "throttled", percent=1.0)) == [False]
    assert not PauseLimits().is_any
    assert PauseLimits(on_throttling=True).is_any


def test_all_reasons_are_named() -> None:
    guard = Guard(PauseLimits(max_temperature_c=60.0, on_battery=True))
    assert guard.judge(reading(61.0, percent=50.0), 0.0) == "hotter than 60 C, goes on at 55 C; on battery"


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        ({"max_temperature_c": 80.0}, "--max-temperature"),
        ({"min_battery_percent": 80.0}, "--min-battery"),
        ({"on_battery": True}, "--pause-on-battery"),
        ({"on_throttling": True}, "--pause-on-throttling"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_limit_that_nothing_measures_is_refused(limits: dict[str, Any], option: str) -> None:
    with pytest.raises(NoSensorError, match=option) as caught:
        PauseLimits(**limits).check(reading())
    assert caught.value.exit_code == ExitCode.USAGE
    PauseLimits(**limits).check(reading(1.0, "", percent=1.0))
    PauseLimits().check(reading())
