"""Measured seconds of an optimizer step over a grid of arms, and between its points; kept in a JSON file."""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from broker_server.errors import ConfigError
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import AxisNumber, Name, Short
from edge_runtime.system.files import write_atomically
from edge_runtime.wire.arms import LORA_AXES, Axes
from edge_runtime.wire.work import Arm

STEP_TIMES_FILE: Final = "step-times.json"
"""Step times of one run, in its directory."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=limits.LONGEST_S)]
_MAX_VALUES: Final = 1000
_MAX_POINTS: Final = 1_000_000


class GridAxis(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one axis of arms at which steps were timed."""

    name: Name
    """Of the axis."""
    values: Annotated[tuple[AxisNumber, ...], msgspec.Meta(min_length=1, max_length=_MAX_VALUES)]
    """Ascending."""

    def __post_init__(self) -> None:
        if sorted(set(self.values)) != list(self.values):
            msg = f"values of {self.name} in step times must ascend"
            raise ValueError(msg)


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Median processor seconds of one optimizer step, on one thread, over a grid of arms."""

    grid: Annotated[tuple[GridAxis, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_AXES)]
    step_s: Annotated[tuple[Seconds, ...], msgspec.Meta(min_length=1, max_length=_MAX_POINTS)]
    """One for each point of the grid; the last axis changes first."""
    machine: Short
    """Machine on which it was measured."""
    measured_at: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """Unix seconds, UTC."""

    def __post_init__(self) -> None:
        wanted = math.prod(len(axis.values) for axis in self.grid)
        if len(self.step_s) != wanted:
            msg = f"{len(self.step_s)} step times, the grid has {wanted} points"
            raise ValueError(msg)

    def at(self, arm: Arm, axes: Axes = LORA_AXES) -> float:
        """Seconds of a step of an arm: piecewise linear along each axis, constant beyond the grid.

        Args:
            arm: the arm; on an axis that was not measured it takes the same at all values.
            axes: that its values, or their defaults, are read by.
        """
        seconds: Sequence[float] = self.step_s
        for axis in reversed(self.grid):
            index, share = _place(axis.values, axes[axis.name].of(arm))
            size = len(axis.values)
            lines = (seconds[begin : begin + size] for begin in range(0, len(seconds), size))
            seconds = [_between(line, index, share) for line in lines]
        return seconds[0]


def provide(path: Path, key: str, measure: Callable[[], StepTimes]) -> StepTimes:
    """Step times from a file that several runs may share; measured, and added to it, by the first that needs them.

    Args:
        path: JSON file, an object by key; made when it is missing.
        key: setting of the times: model, task, batch, length.
        measure: called once, while other runs that need the file wait.

    Raises:
        ConfigError: the file holds something else.
        DiskFullError: there is no space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock")):
        known = _read(path)
        if key not in known:
            known[key] = measure()
            write_step_times(path, known)
        return known[key]


def read_step_times(path: Path) -> StepTimes:
    """The step times of one run.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=StepTimes)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"step times {path} cannot be used ({error}): an emulated fleet needs them; `fedspine run` measures them"
        raise ConfigError(msg) from error


def write_step_times(path: Path, times: StepTimes | Mapping[str, StepTimes]) -> None:
    """Write the step times of one run, or those of several by key.

    Raises:
        DiskFullError: there is no space.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(times), indent=2) + b"\n")


def _read(path: Path) -> dict[str, StepTimes]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, StepTimes]) if path.exists() else {}
    except (OSError, msgspec.DecodeError) as error:
        msg = f"calibration {path} cannot be used ({error}): remove it, and it is measured again"
        raise ConfigError(msg) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _place(grid: Sequence[float], value: float) -> tuple[int, float]:
    """Index of the grid point at or below ``value``, and how far it is towards the next, in [0, 1]."""
    index = max(0, bisect.bisect_right(grid, value) - 1)
    if index + 1 >= len(grid) or value <= grid[0]:
        return index, 0.0
    return index, (value - grid[index]) / (grid[index + 1] - grid[index])


def _between(row: Sequence[float], index: int, share: float) -> float:
    return row[index] + (row[min(index + 1, len(row) - 1)] - row[index]) * share
