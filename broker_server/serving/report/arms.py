"""The arm of each device in each round, for people; the method says which axes its arms have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Final

from broker_server.methods.by_name import method_of
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.wire.arms import ONE_ARM, Axes
from edge_runtime.wire.work import Arm

MOST_SHOWN: Final = 20
"""Devices whose arms a page or a terminal lists; of a larger fleet it shows the first ones."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArms:
    """The arms of one device."""

    device_id: str
    device_class: str
    """Class of an emulated device; empty if nothing is emulated."""
    played: Sequence[DeviceRecord | None]
    """Its part in each round after round 0; None = it had none."""

    @property
    def name(self) -> str:
        """The device, and its emulated class."""
        return f"{self.device_id} (emulated {self.device_class})" if self.device_class else self.device_id


def axes_of(config: Mapping[str, str | int | float | bool]) -> Axes:
    """Return the axes of a run's arms, from the settings in its report.

    Raises:
        ConfigError: its method is of a package that is not here.
    """
    return method_of(str(config.get("method", ""))).axes


def first_work_of(config: Mapping[str, str | int | float | bool]) -> str:
    """Return the kind of other work that a run's method may begin with; empty = none.

    Raises:
        ConfigError: as :func:`axes_of`.
    """
    return method_of(str(config.get("method", ""))).first_work or ""


def arms_by_device(report: Report) -> list[DeviceArms]:
    """The arms of all devices, by device; each round's are those that the last steps of its assignment played."""
    rounds = [{device.device_id: device for device in entry.devices} for entry in report.rounds[1:]]
    fleet = () if report.fleet is None else report.fleet.classes
    classes = {device_id: one.name for one in fleet for device_id in one.device_ids}
    ids = sorted({device_id for devices in rounds for device_id in devices}, key=natural)
    return [
        DeviceArms(
            device_id=device_id,
            device_class=classes.get(device_id, ""),
            played=[devices.get(device_id) for devices in rounds],
        )
        for device_id in ids
    ]


def arm_text(arm: Arm, axes: Axes) -> str:
    """An arm as people write it, numbers that are not whole to two digits: ``0.42:6``."""
    return ONE_ARM if not axes else axes.format((axes.arm([round(value, 2) for value in axes.row(arm)]),))


def is_of_many_kinds(devices: Sequence[DeviceArms]) -> bool:
    """Return whether devices were asked for different kinds of work in a round."""
    rounds = zip(*(one.played for one in devices), strict=True)
    return any(len({played.work for played in entry if played is not None}) > 1 for entry in rounds)


def played_text(played: DeviceRecord, axes: Axes, *, with_work: bool) -> str:
    """The arm of a device in a round for people, and the kind of work where that is wanted: ``0.42:6 (lora)``."""
    text = arm_text(played.arm, axes)
    return f"{text} ({played.work})" if with_work and played.work else text


def natural(device_id: str) -> list[tuple[int, str]]:
    """Sorts ``device-2`` before ``device-10``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", device_id)]
