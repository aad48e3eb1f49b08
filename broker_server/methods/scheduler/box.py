"""The bounding box of some arms, and the lattice of arms in it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime.wire.arms import Axes, Axis
from edge_runtime.wire.work import Arm

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmBox:
    """The space of schedulers that are not bound to a list of arms."""

    axes: Axes
    low: tuple[float, ...]
    """Smallest value on each axis."""
    high: tuple[float, ...]
    """Largest value on each axis."""

    @classmethod
    def of(cls, arms: Sequence[Arm], axes: Axes) -> ArmBox:
        """The smallest box that holds all of ``arms`` (one or more)."""
        columns = list(zip(*(axes.row(arm) for arm in arms), strict=True))
        return cls(axes=axes, low=tuple(map(min, columns)), high=tuple(map(max, columns)))

    @property
    def cheapest(self) -> Arm:
        """The corner that costs least."""
        return self.axes.arm([high if axis.removes else low for axis, low, high in self.sides()])

    @property
    def costliest(self) -> Arm:
        """The corner that costs most."""
        return self.axes.arm([low if axis.removes else high for axis, low, high in self.sides()])

    def sides(self) -> list[tuple[Axis, float, float]]:
        """Each axis with its smallest and its largest value."""
        return list(zip(self.axes, self.low, self.high, strict=True))

    def side(self, name: str) -> tuple[float, float]:
        """Smallest and largest value on an axis."""
        return next((low, high) for axis, low, high in self.sides() if axis.name == name)

    def values(self, name: str) -> list[float]:
        """Values that may be played on an axis, ascending, both ends of the box among them.

        Of a float the multiples of ``1 / per_unit``. Of an int at most ``at_most``, in equal steps, or equal factors
        on a logarithmic axis.
        """
        axis, (low, high) = self.axes[name], self.side(name)
        if axis.kind is float:
            steps = range(math.ceil(low * axis.per_unit), math.floor(high * axis.per_unit) + 1)
            return sorted({low, *(k / axis.per_unit for k in steps), high})
        if high - low < axis.at_most:
            return list(range(int(low), int(high) + 1))
        spread = np.geomspace if axis.is_log else np.linspace
        return sorted({round(value) for value in spread(low, high, axis.at_most)})

    def lattice(self) -> tuple[Arm, ...]:
        """Every arm of :meth:`values`, by the first axis, then by the second and so on, ascending."""
        return tuple(self.axes.arm(row) for row in itertools.product(*(self.values(axis.name) for axis in self.axes)))

    def places(self, rows: Floats) -> Floats:
        """Return the places of arms in the unit cube of the box, ascending with values; arms outside are at its edge.

        Args:
            rows: values, [num_arms, num_axes].
        """
        if not self.axes:
            return rows
        columns = [
            np.log(column / low) / (float(np.log(high / low)) or 1.0)
            if axis.is_log
            else (column - low) / (high - low or 1.0)
            for column, (axis, low, high) in zip(rows.T, self.sides(), strict=True)
        ]
        return np.asarray(np.clip(np.stack(columns, axis=1), 0.0, 1.0))

    def place(self, arm: Arm) -> tuple[float, ...]:
        """Return the place of one arm, see :meth:`places`."""
        return tuple(self.places(self.rows([arm]))[0].tolist())

    def work(self, rows: Floats) -> Floats:
        """Return the work of arms on each axis, in (0, 1]: the share that stays, or the share of the box's most.

        Args:
            rows: values, [num_arms, num_axes].
        """
        if not self.axes:
            return rows
        columns = [
            1.0 - column if axis.removes else column / high
            for column, (axis, _, high) in zip(rows.T, self.sides(), strict=True)
        ]
        return np.stack(columns, axis=1)

    def rows(self, arms: Sequence[Arm]) -> Floats:
        """Values of arms, [num_arms, num_axes]."""
        return np.array([self.axes.row(arm) for arm in arms], dtype=np.float64).reshape(len(arms), len(self.axes))
