"""Measured seconds of an optimizer step over a grid of arms, and between its points; kept in a JSON file."""

from __future__ import annotations

import bisect
import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from broker_server.errors import ConfigError
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import PruningRatio, Short
from edge_runtime.system.files import write_atomically

STEP_TIMES_FILE: Final = "step-times.json"
"""Step times of one run, in its directory."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=limits.LONGEST_S)]
Rank = Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_RANK)]
Row = Annotated[tuple[Seconds, ...], msgspec.Meta(max_length=1000)]


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Median processor seconds of one optimizer step, on one thread, by pruning ratio and rank."""

    ratios: Annotated[tuple[PruningRatio, ...], msgspec.Meta(min_length=1, max_length=1000)]
    """Ascending."""
    ranks: Annotated[tuple[Rank, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_RANK)]
    """Ascending."""
    step_s: Annotated[tuple[Row, ...], msgspec.Meta(max_length=1000)]
    """One row a ratio, one column a rank."""
    machine: Short
    """Where it was measured."""
    measured_at: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """Unix seconds, UTC."""

    def __post_init__(self) -> None:
        sizes = {len(row) for row in self.step_s}
        if len(self.step_s) != len(self.ratios) or sizes != {len(self.ranks)}:
            msg = f"step times are {len(self.step_s)} x {sorted(sizes)}, not {len(self.ratios)} x {len(self.ranks)}"
            raise ValueError(msg)
        if sorted(set(self.ratios)) != list(self.ratios) or sorted(set(self.ranks)) != list(self.ranks):
            msg = "ratios and ranks of step times must ascend"
            raise ValueError(msg)

    def at(self, pruning_ratio: float, rank: int) -> float:
        """Seconds of a step of an arm: piecewise linear in ratio and in rank, constant beyond the grid."""
        row, row_share = _place(self.ratios, pruning_ratio)
        column, column_share = _place(self.ranks, rank)
        low = _between(self.step_s[row], column, column_share)
        high = _between(self.step_s[min(row + 1, len(self.ratios) - 1)], column, column_share)
        return low + (high - low) * row_share


def provide(path: Path, key: str, measure: Callable[[], StepTimes]) -> StepTimes:
    """Step times from a file that several runs may share; measured, and added to it, by the first that needs them.

    Args:
        path: JSON file, an object by key; made when it is missing.
        key: what the times are of: model, task, batch, length.
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
            write_atomically(path, msgspec.json.format(msgspec.json.encode(known)) + b"\n")
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


def write_step_times(path: Path, times: StepTimes) -> None:
    """Write the step times of one run.

    Raises:
        DiskFullError: there is no space.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(times)) + b"\n")


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
