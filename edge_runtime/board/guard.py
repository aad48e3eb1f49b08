"""Pauses of work: thresholds that the owner of the board sets, with hysteresis."""

from __future__ import annotations

import dataclasses
from typing import Final

from edge_runtime.board.errors import NoSensorError
from edge_runtime.board.sensors import Battery, Reading

COOLER_C: Final = 5.0
"""Degrees Celsius that a temperature must fall below the threshold before work goes on."""

FULLER_PERCENT: Final = 5.0
"""Points that a battery must be above the threshold before work goes on."""

CALM_S: Final = 30.0
"""Time without throttling before work goes on, seconds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PauseLimits:
    """Reasons to pause work; none by default."""

    max_temperature_c: float | None = None
    """Pause above this temperature, degrees Celsius; None = no limit."""
    min_battery_percent: float | None = None
    """Pause below this charge while the board runs on its battery; None = no limit."""
    on_battery: bool = False
    """Pause whenever the board runs on its battery."""
    on_throttling: bool = False
    """Pause while the cores are throttled."""

    @property
    def is_any(self) -> bool:
        """Return whether any limit is set."""
        return self != PauseLimits()

    def check(self, reading: Reading) -> None:
        """Refuse limits that this board cannot watch.

        Raises:
            NoSensorError: there is no sensor for one of the limits.
        """
        watched = (
            ("--max-temperature", self.max_temperature_c is not None, reading.temperature_c, "thermal zone"),
            ("--pause-on-throttling", self.on_throttling, reading.throttling, "sign of throttling"),
            ("--min-battery", self.min_battery_percent is not None, reading.battery, "battery"),
            ("--pause-on-battery", self.on_battery, reading.battery, "battery"),
        )
        for option, is_wanted, found, what in watched:
            if is_wanted and found is None:
                msg = f"{option} would do nothing: the kernel shows no {what} on this board; leave the option out"
                raise NoSensorError(msg)


class Guard:
    """Decides about pauses from successive readings; it keeps the reason of the current pause.

    Args:
        limits: reasons to pause.
    """

    def __init__(self, limits: PauseLimits) -> None:
        self._limits = limits
        self._is_hot = self._is_low = False
        self._throttled_at = float("-inf")
        self._throttling = ""

    def judge(self, reading: Reading, now: float) -> str | None:
        """Return the reason why work should pause; None = work may go on.

        Args:
            reading: values of the sensors; a missing value is no reason to pause.
            now: monotonic seconds.
        """
        reasons = (self._hot(reading.temperature_c), self._low(reading.battery), self._slowed(reading.throttling, now))
        return "; ".join(reason for reason in reasons if reason) or None

    def _hot(self, temperature_c: float | None) -> str:
        limit = self._limits.max_temperature_c
        if limit is None or temperature_c is None:
            return ""
        self._is_hot = temperature_c > (limit - COOLER_C if self._is_hot else limit)
        return f"hotter than {limit:g} C, goes on at {limit - COOLER_C:g} C" if self._is_hot else ""

    def _low(self, battery: Battery | None) -> str:
        limit = self._limits.min_battery_percent
        if battery is None:
            return ""
        if limit is not None:
            enough = min(100.0, limit + FULLER_PERCENT)
            if self._is_low:
                self._is_low = battery.percent < enough and (battery.is_discharging or not battery.is_full)
            else:
                self._is_low = battery.is_discharging and battery.percent < limit
            if self._is_low:
                return f"battery below {limit:g} %, goes on at {enough:g} %"
        return "on battery" if self._limits.on_battery and battery.is_discharging else ""

    def _slowed(self, throttling: str | None, now: float) -> str:
        if not self._limits.on_throttling:
            return ""
        if throttling:
            self._throttled_at, self._throttling = now, throttling
        return f"slowed down ({self._throttling})" if now < self._throttled_at + CALM_S else ""
