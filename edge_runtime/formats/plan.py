"""Plans: which heads and feed-forward channels of each layer stay.

A plan travels as one bitmap per group (a few hundred bytes to a few kilobytes), names nothing but indices, and is all a
device needs to slice its own base weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import GroupName, Layer, NumUnits
from edge_runtime.errors import PlanError
from edge_runtime.formats.manifest import GroupSpec, Manifest, PruneAxis, TensorSpec, digest_of

Indices = npt.NDArray[np.int64]

MAX_OPENED: Final = 256
"""Bitmaps whose units stay in memory: those of the plans of an assignment, or of the arms of a round."""
MAX_OPENED_UNITS: Final = 1 << 14
"""Units of such a bitmap at most: together they take 32 MiB at most."""


class KeptUnits(msgspec.Struct, frozen=True, kw_only=True):
    """The units of one group that stay: bit ``u`` (least significant first) of ``bitmap`` is unit ``u``."""

    layer: Layer
    group: GroupName
    num_units: NumUnits
    bitmap: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_UNITS // 8)]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The units of every group that stay; groups in the order of the manifest."""

    groups: Annotated[tuple[KeptUnits, ...], msgspec.Meta(max_length=limits.MAX_GROUPS)]

    @classmethod
    def full(cls, manifest: Manifest) -> Self:
        """The plan that keeps everything."""
        return cls.from_kept(manifest, {})

    @classmethod
    def from_kept(cls, manifest: Manifest, kept: Mapping[tuple[int, str], npt.ArrayLike]) -> Self:
        """Build a plan from unit indices, ``(layer, group) -> indices``; a group that is not named keeps everything.

        Raises:
            PlanError: an unknown group, an index outside its group, or a group that keeps nothing.
        """
        known = {(g.layer, g.group) for g in manifest.groups}
        if unknown := sorted(set(kept) - known):
            msg = f"plan names groups that the model lacks: {unknown[:3]}"
            raise PlanError(msg)
        entries = []
        for spec in manifest.groups:
            units = np.asarray(kept.get((spec.layer, spec.group), np.arange(spec.num_units)), dtype=np.int64)
            if units.size == 0 or units.min() < 0 or units.max() >= spec.num_units:
                msg = (
                    f"plan for layer {spec.layer}, {spec.group}: units must be 1 or more of 0..{spec.num_units - 1}, "
                    f"got {units[:8].tolist()}"
                )
                raise PlanError(msg)
            bits = np.zeros(spec.num_units, dtype=np.uint8)
            bits[units] = 1
            bitmap = np.packbits(bits, bitorder="little").tobytes()
            entries.append(KeptUnits(layer=spec.layer, group=spec.group, num_units=spec.num_units, bitmap=bitmap))
        return cls(groups=tuple(entries))

    def check(self, manifest: Manifest) -> None:
        """Refuse a plan that was made for another model.

        Raises:
            PlanError: groups or numbers of units differ from the manifest's, or a group keeps nothing.
        """
        expected = [(g.layer, g.group, g.num_units) for g in manifest.groups]
        got = [(g.layer, g.group, g.num_units) for g in self.groups]
        if expected != got:
            msg = f"plan is for another model: got groups {got[:2]}..., expected {expected[:2]}..."
            raise PlanError(msg)
        for entry in self.groups:
            if not 0 < entry.num_units <= limits.MAX_UNITS or len(entry.bitmap) != (entry.num_units + 7) // 8:
                msg = f"plan for layer {entry.layer}, {entry.group}: bitmap of {len(entry.bitmap)} bytes is malformed"
                raise PlanError(msg)
            if _units(entry).size == 0:
                msg = f"plan for layer {entry.layer}, {entry.group} keeps nothing; at least one unit must stay"
                raise PlanError(msg)

    def kept(self, layer: int, group: str) -> Indices:
        """Indices of the units that stay in a group, ascending, int64.

        Raises:
            PlanError: the plan has no such group.
        """
        for entry in self.groups:
            if entry.layer == layer and entry.group == group:
                return _units(entry)
        msg = f"plan has no group {group!r} in layer {layer}"
        raise PlanError(msg)

    def indices(self, layer: int, prune: PruneAxis) -> Indices:
        """Indices along a tensor's axis that stay under this plan, ascending, int64."""
        units = self.kept(layer, prune.group)
        return (units[:, None] * prune.unit_size + np.arange(prune.unit_size)).reshape(-1)

    def shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Shape of a frozen weight under this plan.

        Raises:
            PlanError: the plan lacks a group of it.
        """
        sizes = list(tensor.shape)
        for prune in tensor.prune:
            if tensor.layer is not None:
                sizes[prune.axis] = self.kept(tensor.layer, prune.group).size * prune.unit_size
        return tuple(sizes)

    def positions(self, layer: int, prune: PruneAxis, within: Plan) -> Indices:
        """Return the indices that stay, along an axis that is already sliced to ``within``; ascending, int64.

        Args:
            layer: the tensor's layer.
            prune: the axis.
            within: a plan that holds every unit of this one.
        """
        units = np.searchsorted(within.kept(layer, prune.group), self.kept(layer, prune.group))
        return (units[:, None] * prune.unit_size + np.arange(prune.unit_size)).reshape(-1).astype(np.int64)

    def check_within(self, manifest: Manifest, other: Plan) -> None:
        """Refuse a plan that is not a shrinking of another one.

        Raises:
            PlanError: it is for another model than ``manifest``, or keeps a unit that ``other`` has not.
        """
        self.check(manifest)
        for entry, held in zip(self.groups, other.groups, strict=True):
            extra = np.setdiff1d(_units(entry), _units(held))
            if extra.size:
                where = f"layer {entry.layer}, {entry.group}"
                msg = f"pruning cannot bring units back: {where} keeps {extra[:8].tolist()}, which are gone"
                raise PlanError(msg)

    def is_within(self, other: Plan) -> bool:
        """Return whether every unit of this plan also stays under ``other`` (plans from one ranking are nested)."""
        pairs = zip(self.groups, other.groups, strict=True)
        return all(np.isin(_units(mine), _units(theirs)).all() for mine, theirs in pairs)

    def digest(self) -> str:
        """SHA-256 of the plan's canonical bytes."""
        return digest_of(msgspec.msgpack.encode(self))

    def num_kept_elements(self, manifest: Manifest) -> tuple[int, int]:
        """Elements of the prunable tensors that stay, and their number before pruning."""
        kept = {(g.layer, g.group): int(_units(g).size) for g in self.groups}
        stay = total = 0
        for tensor in manifest.tensors:
            if tensor.layer is None or not tensor.prune:
                continue
            shape = list(tensor.shape)
            total += math.prod(shape)
            for prune in tensor.prune:
                shape[prune.axis] = kept[tensor.layer, prune.group] * prune.unit_size
            stay += math.prod(shape)
        return stay, total

    def sparsity(self, manifest: Manifest) -> float:
        """Measured fraction of the prunable weights that is removed, in [0, 1)."""
        stay, total = self.num_kept_elements(manifest)
        return 0.0 if total == 0 else 1.0 - stay / total


def uniform_num_kept(spec: GroupSpec, pruning_ratio: float) -> int:
    """Units of a group that stay at a requested ratio: the rest rounded half up, and never fewer than one (ours).

    >>> uniform_num_kept(GroupSpec(layer=0, group="heads", num_units=12), 0.25)
    9
    """
    return max(1, int(np.floor(spec.num_units * (1.0 - pruning_ratio) + 0.5)))


def _units(entry: KeptUnits) -> Indices:
    """The units of a group that stay, ascending, int64, read-only."""
    is_small = entry.num_units <= MAX_OPENED_UNITS
    return _opened(entry.bitmap, entry.num_units) if is_small else _unpacked(entry.bitmap, entry.num_units)


def _unpacked(bitmap: bytes, num_units: int) -> Indices:
    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little", count=num_units)
    units = np.flatnonzero(bits).astype(np.int64)
    units.flags.writeable = False
    return units


_opened = functools.lru_cache(maxsize=MAX_OPENED)(_unpacked)
"""By bits and not by plan: the plans of a round's devices, and those that are read from a store, have the same."""
