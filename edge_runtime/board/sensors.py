"""The door to the board's sensors: temperature, throttling and battery, read from the kernel's files.

Formats: ``Documentation/ABI/testing/sysfs-class-thermal``, ``sysfs-class-power`` and ``sysfs-devices-system-cpu`` of
Linux, and Raspberry Pi's ``get_throttled`` (hexadecimal; bits 0 to 3 are the current state, bits 16 to 19 the past). A
file that is absent, unreadable or malformed counts as no sensor: drivers come and go, and a sensor may be asleep.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SYS: Final = Path("/sys")
"""Root of the sensors' files on Linux."""

COLDEST_C: Final = -40.0
HOTTEST_C: Final = 150.0
"""Readings outside this range come from a sensor that is off or broken."""

_NO_TEMPERATURE: Final = re.compile(r"PMIC-Die|INT3400.*", re.IGNORECASE)
"""Types of zones that always read the same: the power chip of Jetsons, and ACPI's policy device."""

_SLOWS_DOWN: Final = re.compile(r".*cpu.*|.*processor.*", re.IGNORECASE)
"""Types of cooling devices that throttle cores, unlike fans."""

_PI_FLAGS: Final = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""Meaning of bits 0 to 3 of ``get_throttled``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """All batteries that the board runs on, as one."""

    percent: float
    """Charge of the fullest battery, 0 to 100."""
    is_discharging: bool
    """Whether the board runs on its batteries now, without a supply."""
    is_full: bool
    """Whether all batteries report that they take no more charge; ``percent`` may be below 100."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The values of all sensors at one moment."""

    temperature_c: float | None
    """Temperature of the hottest zone, degrees Celsius; None without a sensor."""
    throttling: str | None
    """Reason why the cores are throttled now; empty = they are not, None = without a sensor."""
    battery: Battery | None
    """The battery; None without one."""


class Sensors:
    """The sensors of one board. Counters of throttling are compared with the previous reading.

    Args:
        root: root of the kernel's files.
    """

    def __init__(self, root: Path = SYS) -> None:
        self._root = root
        self._counts: dict[Path, int] = {}

    def read(self) -> Reading:
        """Read all sensors; takes about a millisecond."""
        return Reading(temperature_c=self._temperature(), throttling=self._throttling(), battery=self._battery())

    def _temperature(self) -> float | None:
        zones = [zone / "temp" for zone in self._glob("class/thermal/thermal_zone*") if not _is_constant(zone)]
        files = zones or [
            path
            for chip in self._glob("class/hwmon/hwmon*")
            if _text(chip / "name") in {"coretemp", "k10temp", "cpu_thermal"}
            for path in sorted(chip.glob("temp*_input"))
        ]
        found = [number / 1000 for path in files if (number := _number(path)) is not None]
        sane = [degrees for degrees in found if COLDEST_C <= degrees <= HOTTEST_C]
        return max(sane) if sane else None

    def _throttling(self) -> str | None:
        reasons = [*self._pi_flags(), *self._cooling(), *self._counters()]
        if not reasons:
            return None
        return ", ".join(dict.fromkeys(reason for reason in reasons if reason))

    def _pi_flags(self) -> Iterator[str]:
        """Yield the flags of a Raspberry Pi's firmware that are set now."""
        for path in self._glob("devices/platform/soc*/soc*:firmware/get_throttled"):
            flags = _number(path, base=16)
            if flags is not None:
                yield ", ".join(word for bit, word in enumerate(_PI_FLAGS) if flags >> bit & 1)

    def _cooling(self) -> Iterator[str]:
        """Cooling devices that throttle cores now (Jetsons, other Arm boards, laptops)."""
        for device in self._glob("class/thermal/cooling_device*"):
            kind, state = _text(device / "type"), _number(device / "cur_state")
            if _SLOWS_DOWN.fullmatch(kind) and state is not None:
                yield f"{kind} at {state}" if state > 0 else ""

    def _counters(self) -> Iterator[str]:
        """Cores that were throttled since the last reading (x86)."""
        for path in self._glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"):
            count = _number(path)
            if count is not None:
                before = self._counts.get(path, count)
                self._counts[path] = count
                yield "processor throttled" if count > before else ""

    def _battery(self) -> Battery | None:
        supplies = [(path, _text(path / "type")) for path in self._glob("class/power_supply/*")]
        own = [path for path, kind in supplies if kind == "Battery" and _text(path / "scope") != "Device"]
        charges = [(path, number) for path in own if (number := _number(path / "capacity")) is not None]
        if not charges:
            return None
        states = [_text(path / "status") for path, _ in charges]
        online = [_number(path / "online") for path, kind in supplies if kind not in {"Battery", ""}]
        known = [state for state in online if state is not None]
        return Battery(
            percent=float(min(100, max(0, *(number for _, number in charges)))),
            is_discharging=not any(known) if known else "Discharging" in states,
            is_full=all(state in {"Full", "Not charging"} for state in states),
        )

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self._root.glob(pattern))


def _is_constant(zone: Path) -> bool:
    return _NO_TEMPERATURE.fullmatch(_text(zone / "type")) is not None


def _text(path: Path) -> str:
    """First line of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, base: int = 10) -> int | None:
    """The number in a file; None if the file holds no number."""
    try:
        return int(_text(path), base)
    except ValueError:
        return None
