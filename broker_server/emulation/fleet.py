"""Classes of emulated devices: a file for ``--emulate``, checked, and dealt to the devices of a run."""

from __future__ import annotations

import importlib.resources
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from broker_server.errors import ConfigError
from broker_server.naming import malformed
from edge_runtime.bounds.fields import Count, Name, Seconds, Share
from edge_runtime.bounds.fields import Positive as Number
from edge_runtime.wire.arms import ArmError, Axes
from edge_runtime.wire.work import Arm

BUILT_IN: Final = ("jetson",)
"""Fleets that ship with the package."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A class changes its speed in the middle of a run."""

    from_round: Number
    """First round at the new speed."""
    factor: Positive
    """Steps take so many times as long as at the start; the drift that began last holds."""


class DeviceClass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of device."""

    name: Name
    count: Number
    """Share of the run's devices, relative to the other classes'; the number itself where they sum to ``--devices``."""
    compute_factor: Positive
    """An optimizer step takes so many times as long as on one thread of the machine that was calibrated."""
    memory_mb: Count = 0
    """Memory that a device may use, MiB; it refuses work that needs more. 0 = no cap."""
    uplink_mbit_s: Positive
    """Rate of its uploads, 1e6 bits a second."""
    downlink_mbit_s: Positive
    """Rate of its downloads, 1e6 bits a second."""
    availability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Probability that a device takes part in a round, drawn for each by itself."""
    drift: Annotated[tuple[Drift, ...], msgspec.Meta(max_length=1000)] = ()
    arm: Annotated[str, msgspec.Meta(max_length=100)] = ""
    """Arm that the scheduler ``by_class`` plays on it, as the method writes its arms; empty = dealt by speed."""

    def arm_on(self, axes: Axes) -> Arm:
        """The arm of a class that has one.

        Raises:
            ConfigError: it is not one arm on these axes.
        """
        try:
            (arm,) = axes.parse(self.arm)
        except (ArmError, ValueError) as error:
            why = error if isinstance(error, ArmError) else f"expected one arm, such as {axes.example}"
            msg = f"class {self.name} of the fleet has arm = {self.arm!r}: {why}"
            raise ConfigError(msg) from error
        return arm

    def compute_factor_at(self, round_number: int) -> float:
        """Compute factor in a round, drift included."""
        begun = [drift for drift in self.drift if drift.from_round <= round_number]
        return self.compute_factor * (max(begun, key=lambda drift: drift.from_round).factor if begun else 1.0)


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table ``[fleet]`` of a file."""

    classes: Annotated[tuple[DeviceClass, ...], msgspec.Meta(min_length=1, max_length=1000)]
    jitter: Share = 0.05
    """Standard deviation of the logarithm of the time of an assignment's steps."""
    deadline_s: Seconds = 0.0
    """Longest time of a round on the virtual clock; a later update does not count. 0 = none."""
    members: Annotated[dict[Name, Name], msgspec.Meta(max_length=1_000_000)] = {}
    """Class of each device; filled in for a run."""

    def __post_init__(self) -> None:
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            msg = f"classes {names} are not all different"
            raise ValueError(msg)
        if unknown := sorted(set(self.members.values()) - set(names)):
            msg = f"members name classes that are not there: {unknown}"
            raise ValueError(msg)

    def class_of(self, device_id: str) -> DeviceClass:
        """The class of a member.

        Raises:
            ConfigError: the device is none.
        """
        name = self.members.get(device_id)
        for one in self.classes:
            if one.name == name:
                return one
        msg = f"device {device_id} has no class in the emulated fleet: only the run's own devices can take part"
        raise ConfigError(msg, device_id=device_id)

    def dealt(self, device_ids: Sequence[str]) -> Fleet:
        """The fleet with its classes dealt to devices, in order, by largest remainders; each gets one where it can."""
        numbers = _shares([one.count for one in self.classes], len(device_ids))
        names = [one.name for one, number in zip(self.classes, numbers, strict=True) for _ in range(number)]
        return msgspec.structs.replace(self, members=dict(zip(device_ids, names, strict=True)))

    def to_toml(self) -> str:
        """TOML text that :func:`parse_fleet` reads back to an equal fleet."""
        lines = ["[fleet]", f"jitter = {self.jitter!r}", f"deadline_s = {self.deadline_s!r}"]
        for one in self.classes:
            lines += ["", "[[fleet.classes]]", f'name = "{one.name}"', f"count = {one.count}"]
            lines += [
                f"{field} = {float(getattr(one, field))!r}"
                for field in ("compute_factor", "uplink_mbit_s", "downlink_mbit_s", "availability")
            ]
            drift = ", ".join(f"{{ from_round = {d.from_round}, factor = {float(d.factor)!r} }}" for d in one.drift)
            lines += [f"memory_mb = {one.memory_mb}", f"drift = [{drift}]", f'arm = "{one.arm}"']
        if self.members:
            lines += ["", "[fleet.members]", *(f'"{device_id}" = "{name}"' for device_id, name in self.members.items())]
        return "\n".join(lines) + "\n"


def parse_fleet(text: str, source: str) -> Fleet:
    """Read a fleet.

    Args:
        text: TOML.
        source: where it is from, for the error.

    Raises:
        ConfigError: not TOML, an unknown or missing key, a wrong type, or a value out of range.
    """
    try:
        data: Mapping[str, object] = tomllib.loads(text)
        if set(data) != {"fleet"}:
            msg = f"fleet {source} has tables {sorted(data)}, expected [fleet]"
            raise ConfigError(msg)
        return msgspec.convert(data["fleet"], Fleet)
    except msgspec.ValidationError as error:
        msg = f"fleet {source}: {malformed(error, Fleet)}"
        raise ConfigError(msg) from error
    except tomllib.TOMLDecodeError as error:
        msg = f"fleet {source} is malformed: {error}"
        raise ConfigError(msg) from error


def load_fleet(name: str | Path) -> Fleet:
    """Read a fleet from a file, or a built-in one by its name.

    Raises:
        ConfigError: the file cannot be read, or see :func:`parse_fleet`.
    """
    try:
        if str(name) in BUILT_IN:
            resource = importlib.resources.files("broker_server") / "emulation" / f"{name}.toml"
            return parse_fleet(resource.read_text(encoding="utf-8"), str(name))
        return parse_fleet(Path(name).read_text(encoding="utf-8"), str(name))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        msg = f"fleet {name} cannot be read ({why}): give a TOML file, or one of {', '.join(BUILT_IN)}"
        raise ConfigError(msg) from error


def _shares(counts: Sequence[int], total: int) -> list[int]:
    """``total`` devices in the ratio of ``counts``, by largest remainders; each class one at least if that can be."""
    least = int(total >= len(counts))
    exact = [count * total / sum(counts) for count in counts]
    numbers = [max(least, math.floor(share)) for share in exact]
    while sum(numbers) > total:
        index = max(range(len(counts)), key=lambda i: (numbers[i] > least, numbers[i] - exact[i]))
        numbers[index] -= 1
    while sum(numbers) < total:
        index = max(range(len(counts)), key=lambda i: exact[i] - numbers[i])
        numbers[index] += 1
    return numbers
