"""The tensors that zero-order tuning changes, B factors and dense tensors, in a lower and an upper part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, Self

from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan

Which = Literal["lower", "upper"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TunedTensor:
    """A tuned tensor and its place in the flat vector."""

    index: int
    """Index among all tensors of the flat vector, A factors included; it selects the tensor's noise."""
    name: str
    shape: tuple[int, ...]
    place: slice
    """Place of the tensor's elements in the flat vector."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TunedParts:
    """The tuned tensors of an adapter under the full plan. A factors are not tuned: if B is 0 their gradient is 0."""

    cut: int
    """Number of blocks in the lower part."""
    lower: tuple[TunedTensor, ...]
    """B factors of the blocks below the cut; empty if no such block has targets."""
    upper: tuple[TunedTensor, ...]
    """B factors of the blocks from the cut on, and the dense tensors."""
    num_elements: int
    """N, the length of the flat vector, A factors included."""

    @classmethod
    def of(cls, manifest: Manifest, rank: int, cut: int) -> Self:
        """Parts of an artifact's adapter.

        Args:
            manifest: manifest of the artifact.
            rank: rank of the adapter.
            cut: number of blocks of the lower part, 0 to the number of blocks.

        Raises:
            TensorError: the cut is outside the model, nothing above it is tuned, or the rank is out of range.
        """
        if not 0 <= cut <= manifest.num_layers:
            msg = f"the cut is {cut}, expected 0 to {manifest.num_layers}, the number of blocks of the model"
            raise TensorError(msg)
        layout = AdapterLayout.of(manifest, Plan.full(manifest), rank)
        layers = {names.lora_b(target.module): target.layer for target in manifest.targets}
        lower: list[TunedTensor] = []
        upper: list[TunedTensor] = []
        begin = 0
        for index, (name, shape) in enumerate(layout.shapes.items()):
            end = begin + math.prod(shape)
            if not names.is_lora_a(name):
                tensor = TunedTensor(index=index, name=name, shape=shape, place=slice(begin, end))
                (lower if layers.get(name, cut) < cut else upper).append(tensor)
            begin = end
        if not upper:
            msg = f"nothing above a cut of {cut} is tuned, the model has no head of its own: choose a lower cut"
            raise TensorError(msg)
        return cls(cut=cut, lower=tuple(lower), upper=tuple(upper), num_elements=begin)

    def part(self, which: Which) -> tuple[TunedTensor, ...]:
        """The tensors of one part."""
        return self.lower if which == "lower" else self.upper


def count_elements(tensors: Iterable[TunedTensor]) -> int:
    """Number of elements of some tensors."""
    return sum(tensor.size for tensor in tensors)
