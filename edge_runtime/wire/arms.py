"""Arms as points on axes: the axes, their ranges, and the written form of arms.

An axis is declared once, here or by its method, and a method declares the axes of its arms. Grammar, ranges,
schedulers, time models, tables and reports read these declarations, so a new axis needs only a new :class:`Axis`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, NoReturn

from edge_runtime.bounds import limits
from edge_runtime.errors import ExitCode, WireError
from edge_runtime.wire.work import Arm, AxisValue

MAX_PRUNING_RATIO: Final = 0.95
"""Largest pruning ratio an arm may ask for."""

ONE_ARM: Final = "one arm"
"""Text for people in place of an arm, if a method has no axes."""

_UNSAID: Final[Mapping[str, float]] = {"pruning_ratio": 0.0, "rank": 1}
"""Values of an arm's fields if the method has no axis for them."""

_NUMBER: Final = {float: re.compile(r"[0-9]*\.?[0-9]+"), int: re.compile(r"[0-9]{1,20}")}


class ArmError(WireError):
    """An arm is malformed, or outside its range."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of arms: its name, its range, and its cost.

    Raises:
        ValueError: the range does not fit the type or scale of the axis.
    """

    name: str
    """Name in messages, files and on the command line."""
    label: str
    """Name for people."""
    metavar: str
    """Name in the grammar: ``RATIO``."""
    words: str
    """Format of a value in a sentence: ``rank {}``."""
    kind: type[int | float]
    least: float
    """Smallest value."""
    most: float
    """Largest value."""
    example: float
    """Example of a value, for messages about the grammar."""
    default: float | None = None
    """Value of an arm without a value on this axis; None = a value is required."""
    removes: bool = False
    """Whether the value is the removed share of the work, in [0, 1): a larger value costs less memory and time.
    Otherwise the value is an amount of work, and a larger value costs more."""
    is_log: bool = False
    """Whether distances in a partition are logarithmic."""
    per_unit: int = 64
    """For a float axis: values of a lattice are multiples of 1 / ``per_unit``."""
    at_most: int = 8
    """For an int axis: most values in a lattice."""
    cost: float = 0.1
    """Cost of the dearest value, relative to the whole range of an axis that removes; used only to find the arm
    half-way between two arms."""
    time_alone: float = 0.05
    """Prior of the share of an assignment's time that depends on this axis alone."""
    time_joint: float = 0.05
    """Prior of the share of an assignment's time that depends on this axis together with the axes before it."""
    gain: float = 0.1
    """Prior of the gain of the dearest value over the cheapest."""
    choices: tuple[str, ...] = ()
    """Written names of the values 1, 2, ... of an int axis, cheapest first; empty = numbers."""

    def __post_init__(self) -> None:
        if self.choices and (self.kind, self.least, self.most) != (int, 1, len(self.choices)):
            msg = f"axis {self.name} has {len(self.choices)} names for values from {self.least} to {self.most}"
            raise ValueError(msg)
        if not self.least <= self.most or (self.removes and not 0 <= self.least <= self.most < 1):
            msg = f"axis {self.name} goes from {self.least} to {self.most}, expected a range, of a share in [0, 1)"
            raise ValueError(msg)
        if (not self.removes or self.is_log) and self.least <= 0:
            msg = f"axis {self.name} begins at {self.least}: an amount of work must be above 0"
            raise ValueError(msg)

    def of(self, arm: Arm) -> float:
        """The value of an arm on this axis, or the default if the arm has no value.

        Raises:
            ArmError: the arm has no value, and there is no default.
        """
        value = arm.value(self.name)
        if value is None:
            value = self.default
        if value is None:
            msg = f"arm {arm} has no {self.label}"
            raise ArmError(msg)
        return self.kind(value)

    def holds(self, arm: Arm) -> bool:
        """Return whether an arm's value is of the axis's type and within its range."""
        value = self.of(arm)
        return self.least <= value <= self.most and arm.value(self.name) in {value, None}

    def costlier(self, value: float) -> float:
        """A number that grows with the cost of a value."""
        return -value if self.removes else value

    def parse(self, text: str) -> float | None:
        """Parse a value; None if the text is no value of this axis."""
        if self.choices:
            return self.choices.index(text) + 1 if text in self.choices else None
        return self.kind(text) if _NUMBER[self.kind].fullmatch(text) else None

    def format(self, value: float) -> str:
        """Inverse of :meth:`parse`, without exponents such as ``1e-05``."""
        if self.choices and 1 <= value <= len(self.choices):
            return self.choices[int(value) - 1]
        return f"{Decimal(repr(self.kind(value))):f}"

    def shown(self, value: float) -> float | str:
        """A value for people and tables: the number, or its name."""
        return self.format(value) if self.choices else value

    @property
    def figure_label(self) -> str:
        """The label for means of values; if values have names, it lists the numbers and their names."""
        names = ", ".join(f"{number} = {name}" for number, name in enumerate(self.choices, start=1))
        return f"{self.label} ({names})" if names else self.label

    @property
    def range_text(self) -> str:
        """The range, for people."""
        if self.choices:
            return f"{self.label} {' or '.join(self.choices)}"
        return f"{self.label} {self.least:g} to {self.most:g}"


@dataclasses.dataclass(frozen=True, slots=True)
class Axes:
    """The axes of one method's arms, in the order in which arms are written.

    The first axis is searched finest; a lattice has few values of the others. Without axes there is one arm, written as
    an empty text.

    Raises:
        ValueError: two axes have one name, or an axis without a default follows an axis with a default.
    """

    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        names, may_be_left_out = [axis.name for axis in self.axes], [axis.default is not None for axis in self.axes]
        if len(set(names)) < len(names) or sorted(may_be_left_out) != may_be_left_out:
            msg = f"axes {names}: expected each name once, and those without a default first"
            raise ValueError(msg)

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __getitem__(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)

    def has(self, name: str) -> bool:
        """Return whether there is an axis of this name."""
        return any(axis.name == name for axis in self.axes)

    @property
    def form(self) -> str:
        """Return the grammar of an arm: ``RATIO:RANK``; empty = there is one arm."""
        placed, named = self._placed_and_named()
        return ":".join(axis.metavar for axis in placed) + "".join(f"[:{axis.name}={axis.metavar}]" for axis in named)

    @property
    def example(self) -> str:
        """Example of a written arm: ``0.25:8``."""
        return ":".join(axis.format(axis.example) for axis in self._placed_and_named()[0])

    @property
    def labels(self) -> str:
        """Return the labels of an arm's values, for people: ``pruning ratio:rank``."""
        return ":".join(axis.label for axis in self.axes)

    def row(self, arm: Arm) -> list[float]:
        """Values of an arm, one for each axis."""
        return [axis.of(arm) for axis in self.axes]

    def arm(self, row: Sequence[float]) -> Arm:
        """Inverse of :meth:`row`.

        Raises:
            ValueError: the number of values is not the number of axes.
        """
        values = {axis.name: axis.kind(value) for axis, value in zip(self.axes, row, strict=True)}
        ratio, rank = (values.pop(name, unsaid) for name, unsaid in _UNSAID.items())
        more = tuple(AxisValue(name=name, value=value) for name, value in sorted(values.items()))
        return Arm(pruning_ratio=ratio, rank=int(rank), more=more)

    def changed(self, arm: Arm, name: str, value: float) -> Arm:
        """An arm with another value on one axis."""
        return self.arm([value if axis.name == name else axis.of(arm) for axis in self.axes])

    def costs(self, arm: Arm) -> tuple[float, ...]:
        """Numbers that grow with the cost of an arm, one for each axis."""
        return tuple(axis.costlier(axis.of(arm)) for axis in self.axes)

    def costs_at_least(self, arm: Arm, other: Arm) -> bool:
        """Return whether ``arm`` costs at least as much as ``other`` on every axis."""
        return all(mine >= theirs for mine, theirs in zip(self.costs(arm), self.costs(other), strict=True))

    def words(self, arm: Arm) -> str:
        """An arm for people: ``25% pruned, rank 8``; :data:`ONE_ARM` without axes."""
        return ", ".join(axis.words.format(axis.shown(axis.of(arm))) for axis in self.axes) or ONE_ARM

    def parse(self, text: str) -> tuple[Arm, ...]:
        """Arms from text, separated by ``,``.

        An arm has values, separated by ``:``, in the order of the axes. Values by name may follow, ``batch_size=4``. An
        axis with a default may be left out. Without axes the text is empty.

        Raises:
            ArmError: the text does not have this form, or a value is outside its range.
        """
        if not self.axes and not text.strip():
            return (self.arm(()),)
        return tuple(self.check(self._parse_one(part)) for part in text.split(","))

    def format(self, arms: Sequence[Arm]) -> str:
        """Inverse of :meth:`parse`.

        Values without a default are written by position, others by name if they differ from the default. If all axes
        have defaults, the first value is written by position.
        """
        return ",".join(self._format_one(arm) for arm in arms)

    def check(self, arm: Arm) -> Arm:
        """Return the arm if its values are within their ranges.

        Raises:
            ArmError: a value is outside its range.
        """
        if more := self._others(arm):
            msg = f"an arm has a {more[0]}, which no arm of this method has: leave it out"
            raise ArmError(msg)
        if not all(axis.holds(arm) for axis in self.axes):
            ranges = ", ".join(axis.range_text for axis in self.axes)
            msg = f"arm {self._format_one(arm)} is outside its range: {ranges}"
            raise ArmError(msg)
        return arm

    def _placed_and_named(self) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
        """The axes that are written by position, and the axes that are written by name."""
        num_placed = sum(axis.default is None for axis in self.axes) or 1
        return self.axes[:num_placed], self.axes[num_placed:]

    def _others(self, arm: Arm) -> list[str]:
        """Names of an arm's values that belong to none of the axes."""
        said = [name for name, value in _UNSAID.items() if arm.value(name) != value]
        return [name for name in (*said, *(one.name for one in arm.more)) if not self.has(name)]

    def _format_one(self, arm: Arm) -> str:
        placed, named = self._placed_and_named()
        return ":".join(
            [axis.format(axis.of(arm)) for axis in placed]
            + [f"{axis.name}={axis.format(axis.of(arm))}" for axis in named if axis.of(arm) != axis.default]
        )

    def _parse_one(self, text: str) -> Arm:
        parts = text.split(":")
        num_placed = next((place for place, part in enumerate(parts) if "=" in part), len(parts))
        placed = {axis.name: part for axis, part in zip(self.axes, parts[:num_placed], strict=False)}
        named = {name.strip(): value for name, _, value in (part.partition("=") for part in parts[num_placed:])}
        values = {axis.name: axis.default for axis in self.axes}
        values |= {name: self[name].parse(part.strip()) for name, part in (placed | named).items() if name in values}
        row = [value for value in values.values() if value is not None]
        if len(placed) + len(named) != len(parts) or placed.keys() & named.keys() or len(row) != len(values):
            self._refuse(text)
        if not named.keys() <= values.keys():
            self._refuse(text)
        return self.arm(row)

    def _refuse(self, text: str) -> NoReturn:
        msg = f"arm {text.strip()[:50]!r} is not {self.form}, such as {self.example}"
        if not self.axes:
            msg = f"arm {text.strip()[:50]!r} is given, but this method has one arm: leave it out"
        raise ArmError(msg)


PRUNING_RATIO: Final = Axis(
    name="pruning_ratio",
    label="pruning ratio",
    metavar="RATIO",
    words="{:.0%} pruned",
    kind=float,
    least=0.0,
    most=MAX_PRUNING_RATIO,
    example=0.25,
    removes=True,
    cost=1.0,
    time_alone=0.8,
)
"""Share of the units that a plan removes. Plans are cached by ratio, and no step below 1/64 changes a small model."""

RANK: Final = Axis(
    name="rank",
    label="rank",
    metavar="RANK",
    words="rank {}",
    kind=int,
    least=1,
    most=limits.MAX_RANK,
    example=8,
    is_log=True,
)
"""Rank of the LoRA factors."""

LORA_AXES: Final = Axes((PRUNING_RATIO, RANK))
"""Axes of first-order LoRA's arms."""
