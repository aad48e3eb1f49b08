"""Plans: which heads and feed-forward channels of each layer stay.

A :class:`PackedPlan` is the form on the wire and on disk: one bitmap per group (a few hundred bytes to a few
kilobytes). It may come from any source. A :class:`Plan` was checked against a manifest and unpacked once; all code that
computes takes a :class:`Plan`. A device slices its own base weights by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Self

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import GroupName, Layer, NumUnits
from edge_runtime.errors import PlanError
from edge_runtime.formats.manifest import GroupSpec, Manifest, PruneAxis, TensorSpec, digest_of

Indices = npt.NDArray[np.int64]


class KeptUnits(msgspec.Struct, frozen=True, kw_only=True):
    """The units of one group that stay: bit ``u`` (least significant first) of ``bitmap`` is unit ``u``."""

    layer: Layer
    group: GroupName
    num_units: NumUnits
    bitmap: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_UNITS // 8)]


class PackedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan on the wire and on disk; :meth:`open` checks whether it fits a model."""

    groups: Annotated[tuple[KeptUnits, ...], msgspec.Meta(max_length=limits.MAX_GROUPS)]
    """Kept units of each group, in the order of the manifest."""

    def open(self, manifest: Manifest) -> Plan:
        """Check the plan against a model's manifest, and unpack it.

        Raises:
            PlanError: groups or numbers of units differ from the manifest's, or a group keeps nothing.
        """
        expected = [(g.layer, g.group, g.num_units) for g in manifest.groups]
        got = [(g.layer, g.group, g.num_units) for g in self.groups]
        if expected != got:
            msg = f"plan is for another model: got groups {got[:2]}..., expected {expected[:2]}..."
            raise PlanError(msg)
        return Plan(packed=self, units={(entry.layer, entry.group): _unpacked(entry) for entry in self.groups})

    def digest(self) -> str:
        """SHA-256 of the plan's canonical bytes."""
        return digest_of(msgspec.msgpack.encode(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The units of every group of a model that stay.

    Make it with :meth:`PackedPlan.open`, :meth:`full` or :meth:`from_kept`; it fits the manifest given there. Plans
    with the same bits are equal.
    """

    packed: PackedPlan
    """The packed form."""
    units: Mapping[tuple[int, str], Indices] = dataclasses.field(compare=False, repr=False)
    """``(layer, group)`` to the kept units: at least one, ascending, int64, read-only; in the manifest's order."""

    @classmethod
    def full(cls, manifest: Manifest) -> Self:
        """The plan that keeps everything."""
        return cls.from_kept(manifest, {})

    @classmethod
    def from_kept(cls, manifest: Manifest, kept: Mapping[tuple[int, str], npt.ArrayLike]) -> Self:
        """Build a plan from the kept units of groups, ``(layer, group) -> indices``; other groups keep everything.

        Raises:
            PlanError: a group is unknown or keeps nothing, or an index is outside its group.
        """
        known = {(g.layer, g.group) for g in manifest.groups}
        if unknown := sorted(set(kept) - known):
            msg = f"plan names groups that the model lacks: {unknown[:3]}"
            raise PlanError(msg)
        entries, units = [], {}
        for spec in manifest.groups:
            key = spec.layer, spec.group
            stay = np.asarray(kept.get(key, np.arange(spec.num_units)), dtype=np.int64)
            if stay.size == 0 or stay.min() < 0 or stay.max() >= spec.num_units:
                msg = (
                    f"plan for layer {spec.layer}, {spec.group}: units must be 1 or more of 0..{spec.num_units - 1}, "
                    f"got {stay[:8].tolist()}"
                )
                raise PlanError(msg)
            bits = np.zeros(spec.num_units, dtype=np.uint8)
            bits[stay] = 1
            bitmap = np.packbits(bits, bitorder="little").tobytes()
            entries.append(KeptUnits(layer=spec.layer, group=spec.group, num_units=spec.num_units, bitmap=bitmap))
            units[key] = _indices_of(bits)
        return cls(packed=PackedPlan(groups=tuple(entries)), units=units)

    def kept(self, layer: int, group: str) -> Indices:
        """Indices of the units that stay in a group, ascending, int64, read-only.

        Raises:
            PlanError: the plan has no such group.
        """
        try:
            return self.units[layer, group]
        except KeyError as error:
            msg = f"plan has no group {group!r} in layer {layer}"
            raise PlanError(msg) from error

    def indices(self, layer: int, prune: PruneAxis) -> Indices:
        """Indices along a tensor's axis that stay under this plan, ascending, int64."""
        units = self.kept(layer, prune.group)
        return (units[:, None] * prune.unit_size + np.arange(prune.unit_size)).reshape(-1)

    def shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Shape of a frozen weight under this plan.

        Raises:
            PlanError: the plan lacks a group of the weight.
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

    def check_within(self, other: Plan) -> None:
        """Refuse this plan if it is not a part of another plan of the same model.

        Raises:
            PlanError: the plan keeps a unit that ``other`` removes.
        """
        for (layer, group), units in self.units.items():
            extra = np.setdiff1d(units, other.kept(layer, group), assume_unique=True)
            if extra.size:
                gone = extra[:8].tolist()
                msg = f"pruning cannot bring units back: layer {layer}, {group} keeps {gone}, which are gone"
                raise PlanError(msg)

    def num_kept_elements(self, manifest: Manifest) -> tuple[int, int]:
        """Number of elements of the prunable tensors that stay, and their number before pruning."""
        prunable = [tensor for tensor in manifest.tensors if tensor.layer is not None and tensor.prune]
        total = sum(math.prod(tensor.shape) for tensor in prunable)
        return sum(math.prod(self.shape(tensor)) for tensor in prunable), total

    def sparsity(self, manifest: Manifest) -> float:
        """Measured fraction of the prunable weights that is removed, in [0, 1)."""
        stay, total = self.num_kept_elements(manifest)
        return 0.0 if total == 0 else 1.0 - stay / total


def uniform_num_kept(spec: GroupSpec, pruning_ratio: float) -> int:
    """Number of units of a group that stay at a requested ratio, rounded half up, at least one (ours).

    >>> uniform_num_kept(GroupSpec(layer=0, group="heads", num_units=12), 0.25)
    9
    """
    return max(1, int(np.floor(spec.num_units * (1.0 - pruning_ratio) + 0.5)))


def _unpacked(entry: KeptUnits) -> Indices:
    """The units of a group that stay; see :attr:`Plan.units`."""
    if len(entry.bitmap) != (entry.num_units + 7) // 8:
        msg = f"plan for layer {entry.layer}, {entry.group}: bitmap of {len(entry.bitmap)} bytes is malformed"
        raise PlanError(msg)
    bits = np.unpackbits(np.frombuffer(entry.bitmap, dtype=np.uint8), bitorder="little", count=entry.num_units)
    units = _indices_of(bits)
    if units.size == 0:
        msg = f"plan for layer {entry.layer}, {entry.group} keeps nothing; at least one unit must stay"
        raise PlanError(msg)
    return units


def _indices_of(bits: npt.NDArray[np.uint8]) -> Indices:
    units = np.flatnonzero(bits).astype(np.int64)
    units.flags.writeable = False
    return units
