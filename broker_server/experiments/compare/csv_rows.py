"""``--csv``: a row for each method, seed, round and device, for a spreadsheet or a data frame.

Columns follow the report's own declaration (:mod:`broker_server.serving.report.schema`): a value that a report gains is
a column here.
"""

from __future__ import annotations

import csv
import io
import typing
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from broker_server.experiments.compare.config import RunKey
from broker_server.serving.report.arms import axes_of
from broker_server.serving.report.schema import Report, RoundEntry
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.wire.arms import Axes
from edge_runtime.wire.work import Arm

ROUND: Final = "round_"
"""Before the names of columns that are of the round, not of the device."""
_FORMULA: Final = ("=", "+", "-", "@", "\t")
"""Characters with which a formula begins in a spreadsheet: text from devices must not begin with one."""

Path = tuple[str, ...]
"""Names of fields, one inside the other."""


def to_csv(reports: Mapping[RunKey, Report]) -> str:
    """All finished runs with a header, in the order of the mapping, then by round and device.

    The evaluation of a round is on the row of each of its devices. A round without devices, as that before training, is
    one row without a device. An arm has a column for each axis of any of the runs, empty if its method has none.

    Raises:
        ConfigError: a method is of a package that is not here.
    """
    axes_by_run = {key: axes_of(report.config) for key, report in reports.items()}
    known = list(axes_by_run.values()) or [axes_of({})]
    every_axis = list(dict.fromkeys(axis.name for axes in known for axis in axes))
    of_device = paths(DeviceRecord, every_axis)
    of_round = [path for path in paths(RoundEntry, every_axis) if path != ("devices",)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = columns(of_device) + [f"{ROUND}{path[-1].removeprefix(ROUND)}" for path in of_round]
    writer.writerow(["method", "seed", *names])
    for key, report in reports.items():
        axes = axes_by_run[key]
        for entry in report.rounds:
            shared = [cell(entry, path, axes) for path in of_round]
            for device in entry.devices or (None,):
                writer.writerow([key.method, key.seed, *(cell(device, path, axes) for path in of_device), *shared])
    return table.getvalue()


def columns(found: Sequence[Path]) -> list[str]:
    """Name of each field's column: its own, or where another has that already, those of the structs around it too."""
    names: list[str] = []
    for path in found:
        names.append("_".join(path) if path[-1] in names else path[-1])
    return names


def paths(kind: type[msgspec.Struct], axes: Sequence[str]) -> list[Path]:
    """Every field of a struct, those of structs inside it in their place; of an arm, every axis."""
    if issubclass(kind, Arm):
        return [(axis,) for axis in axes]
    found: list[Path] = []
    for field in msgspec.structs.fields(kind):
        types = [field.type, *typing.get_args(field.type)]
        inside = next((one for one in types if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)
        is_many = typing.get_origin(field.type) is tuple
        deeper = paths(inside, axes) if inside is not None and not is_many else [()]
        found += [(field.name, *path) for path in deeper]
    return found


def cell(value: object, path: Path, axes: Axes) -> str:
    """A field of a struct as text; empty if it, or a struct on the way, is not there."""
    for name in path:
        if isinstance(value, Arm):
            value = axes[name].shown(axes[name].of(value)) if axes.has(name) else None
        elif value is not None:
            value = getattr(value, name)
    if value is None or value is UNSET:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return str(value).lower() if isinstance(value, bool) else repr(value)
