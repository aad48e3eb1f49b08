"""The input of a rule for one target: the old factors, and each device's factors with the coordinates that it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime.formats.manifest import TargetSpec
from edge_runtime.formats.plan import Indices

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One device's part in a target."""

    a: Float64
    """``[r, I_k]``"""
    b: Float64
    """``[O_k, r]``"""
    held: Indices
    """Coordinates of the pruned side that the device holds, ascending; all where no side is ever pruned."""
    num_examples: int
    """1 or more."""
    units: Indices | None
    """Units that the device holds, each with as many coordinates as the others; None if no side is ever pruned."""
    importance: Float32 | None
    """One score of 0 or more for each of ``units``; None = the device sent none."""

    @property
    def rank(self) -> int:
        """``r``."""
        return int(self.a.shape[0])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TargetUpdates:
    """The old factors of a target, and the contributions of a round."""

    spec: TargetSpec
    old_a: Float64
    """``[R, I]``"""
    old_b: Float64
    """``[O, R]``"""
    contributions: Sequence[Contribution]
    """One or more."""

    @property
    def prunes_columns(self) -> bool:
        """Return whether coordinates are columns of A; otherwise they are rows of B, pruned or not."""
        return self.spec.in_prune is not None

    @property
    def num_coordinates(self) -> int:
        """Coordinates of the pruned side: ``I`` or ``O``."""
        return self.spec.in_features if self.prunes_columns else self.spec.out_features

    @property
    def rank(self) -> int:
        """``R``."""
        return int(self.old_a.shape[0])

    def by_examples(self) -> list[Float64]:
        """The weight of each contribution at each coordinate it holds: its number of examples."""
        return [np.full(one.held.size, float(one.num_examples)) for one in self.contributions]
