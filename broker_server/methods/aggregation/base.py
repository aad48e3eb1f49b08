"""The base class of aggregation rules, with the checks that come before any arithmetic.

Shape legend: ``R`` rank of the global adapter, ``r`` rank of a device's, ``O`` rows of B (outputs of the target), ``I``
columns of A (its inputs). With a suffix ``k``: of one device, under its plan.

A coordinate is one row of B or one column of A. A device does *not hold* a coordinate that its plan removed: the device
counts there neither in the sum nor in the sum's divisor, or else pruned coordinates would be pulled to zero. A
coordinate that no device holds keeps its old value. At most one side of a target is pruned, because the hidden size is
not pruned.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from broker_server.errors import AggregationError
from broker_server.methods.aggregation.factorise import compress
from broker_server.methods.aggregation.targets import Contribution, Float32, Float64, TargetUpdates
from edge_runtime.errors import WireError
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, Trainable, restrict, target_indices
from edge_runtime.formats.manifest import Manifest, TargetSpec
from edge_runtime.formats.payload import Merged, Payload, check_merged, restrict_merged
from edge_runtime.formats.plan import Indices, Plan
from edge_runtime.formats.seed_pool import SeedPool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """The global model: in each target the weight counts as W + lora_scaling * (B A + merged_B merged_A).

    W is the weight of the artifact. If there is a pool of seeds, its move is subtracted from W and the dense tensors.
    """

    adapter: Mapping[str, Float32]
    """Full plan, rank ``R``; names are those of :class:`edge_runtime.formats.adapter.AdapterLayout`."""
    merged: Merged = dataclasses.field(default_factory=dict)
    """Factors merged into the frozen weights so far, by target module; empty if the rule merges none."""
    pool: SeedPool | None = None
    """Change of all weights since the start, if all are tuned, else None."""
    memory: Mapping[str, npt.NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """State of the method over rounds, by name; it is not a part of the model, and is not sent to devices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdate:
    """One device's trained adapter."""

    device_id: str
    plan: Plan
    rank: int
    num_examples: int
    """Weight of the device, 0 or more; 0 = checked, but not counted."""
    tensors: Mapping[str, Float32]
    """Under ``plan`` and ``rank``, named as in :class:`edge_runtime.formats.adapter.AdapterLayout`; without the A
    factors where the rule's ``trainable`` is ``lora_b``."""
    importance: Mapping[tuple[int, str], Float32] = dataclasses.field(default_factory=dict)
    """``(layer, group)`` to one score of 0 or more for each unit that ``plan`` keeps; a group may be missing."""
    is_checked: bool = False
    """Whether names, shapes and values were checked on arrival; then they are not checked again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """New factors of one target, float64."""

    a: Float64
    """``[R, I]``"""
    b: Float64
    """``[O, R]``"""
    folded: tuple[Float64, Float64] | None = None
    """Left ``[O, S]`` and right ``[S, I]``, whose product is added to the frozen weight; None = nothing is added."""


class Aggregation(abc.ABC):
    """Base class of rules: subclasses combine the factors of one target; this class does all the rest."""

    name: ClassVar[str]
    trainable: ClassVar[Trainable] = "all"
    """Tensors that devices train and send back."""
    restarts: ClassVar[bool] = False
    """Whether every round starts from an adapter with B = 0, after the last one was merged."""
    sends_rest: ClassVar[bool] = False
    """Whether a device also gets the components beyond its rank, to merge them into its frozen weights."""

    def aggregate(
        self, manifest: Manifest, before: Aggregated, updates: Sequence[DeviceUpdate], rng: np.random.Generator
    ) -> Aggregated:
        """The new global adapter and merged factors.

        The result does not depend on the order of ``updates``. All ranks share one scaling alpha / rank, so products of
        factors of different ranks may be added.

        Args:
            manifest: the artifact's manifest.
            before: model that devices started from: full plan, rank ``R``; the result has the same rank.
            updates: one or more, each of a different device.
            rng: values of fresh components; drawn in the order of the manifest.

        Returns:
            Float32 tensors under the full plan and rank ``R``, in layout order; merged factors of ``min(O, I)``
            components or fewer.

        Raises:
            AggregationError: no update or no weight; a device twice; or an adapter whose names, shapes, rank,
                importance or values do not fit, naming device and tensor.
        """
        rank = _check_before(manifest, before)
        ordered = sorted(updates, key=lambda update: update.device_id)
        _check_updates(manifest, rank, ordered, self.trainable)
        counted = [update for update in ordered if update.num_examples > 0]
        adapter: dict[str, Float32] = {}
        merged = dict(before.merged)
        for target in manifest.targets:
            key_a, key_b = names.lora_a(target.module), names.lora_b(target.module)
            new = self._combine(_target_updates(target, before.adapter, counted), rng)
            adapter[key_a] = np.ascontiguousarray(new.a, np.float32)
            adapter[key_b] = np.ascontiguousarray(new.b, np.float32)
            if new.folded is not None:
                _fold(merged, target, new.folded)
        weights = np.array([update.num_examples for update in counted], np.float64)
        for dense in manifest.dense:
            stacked = np.stack([_double(update.tensors[dense.name]) for update in counted])
            adapter[dense.name] = np.average(stacked, axis=0, weights=weights).astype(np.float32)
        return Aggregated(adapter=adapter, merged=merged)

    def start(self, manifest: Manifest, state: Aggregated, plan: Plan, rank: int) -> Payload:
        """Return the part of the adapter and of the merged factors that a device with ``plan`` and ``rank`` needs.

        Args:
            manifest: the artifact's manifest.
            state: under the full plan.
            plan: units that the device holds.
            rank: components that it trains, the leading ones.

        Raises:
            TensorError: the adapter has fewer components than ``rank``.
        """
        merged = restrict_merged(manifest, state.merged, plan)
        everything = state.adapter[names.lora_a(manifest.targets[0].module)].shape[0]
        if self.sends_rest and everything > rank:
            whole = restrict(manifest, state.adapter, plan, everything)
            for target in manifest.targets:
                b, a = whole[names.lora_b(target.module)][:, rank:], whole[names.lora_a(target.module)][rank:]
                _fold(merged, target, (_double(b), _double(a)))
        return Payload(adapter=restrict(manifest, state.adapter, plan, rank), merged=merged)

    @abc.abstractmethod
    def _combine(self, target: TargetUpdates, rng: np.random.Generator) -> Combined:
        """New factors of one target; its contributions are checked, sorted by device, and have positive weights."""


def _target_updates(target: TargetSpec, old: Mapping[str, Float32], updates: Sequence[DeviceUpdate]) -> TargetUpdates:
    key_a, key_b = names.lora_a(target.module), names.lora_b(target.module)
    size = target.in_features if target.in_prune is not None else target.out_features
    prune = target.in_prune or target.out_prune
    contributions = []
    indices: dict[int, tuple[Indices | None, Indices | None]] = {}
    """Indices by the identity of a plan, because many devices share a plan."""
    for update in updates:
        if id(update.plan) not in indices:
            indices[id(update.plan)] = target_indices(target, update.plan)
        rows, columns = indices[id(update.plan)]
        held = columns if target.in_prune is not None else rows
        sent_a = old[key_a][: update.rank] if columns is None else old[key_a][: update.rank, columns]
        contributions.append(
            Contribution(
                a=_double(update.tensors.get(key_a, sent_a)),
                b=_double(update.tensors[key_b]),
                held=np.arange(size, dtype=np.int64) if held is None else held,
                num_examples=update.num_examples,
                units=None if prune is None else update.plan.kept(target.layer, prune.group),
                importance=None if prune is None else update.importance.get((target.layer, prune.group)),
            )
        )
    return TargetUpdates(spec=target, old_a=_double(old[key_a]), old_b=_double(old[key_b]), contributions=contributions)


def _fold(merged: dict[str, tuple[Float32, Float32]], target: TargetSpec, folded: tuple[Float64, Float64]) -> None:
    """Add a product to the merged factors, and factorise the sum again, so that the number of components is bounded."""
    left, right = folded
    if target.module in merged:
        a, b = merged[target.module]
        left, right = np.concatenate([_double(b), left], axis=1), np.concatenate([_double(a), right])
    new_a, new_b = compress(left, right)
    if new_a.shape[0]:
        merged[target.module] = np.ascontiguousarray(new_a, np.float32), np.ascontiguousarray(new_b, np.float32)
    else:
        merged.pop(target.module, None)


def _double(value: Float32) -> Float64:
    return np.asarray(value, np.float64)


def _check_before(manifest: Manifest, before: Aggregated) -> int:
    """Rank of the global adapter, after a check of its tensors."""
    if not manifest.targets:
        msg = "model has no LoRA target: nothing to aggregate"
        raise AggregationError(msg)
    first = before.adapter.get(names.lora_a(manifest.targets[0].module))
    if first is None or first.ndim != 2:
        msg = f"global adapter lacks the matrix {names.lora_a(manifest.targets[0].module)!r}"
        raise AggregationError(msg)
    try:
        plan = Plan.full(manifest)
        AdapterLayout.of(manifest, plan, first.shape[0]).check(before.adapter)
        check_merged(manifest, plan, before.merged)
    except WireError as error:
        msg = f"global adapter cannot be used: {error}"
        raise AggregationError(msg) from error
    return int(first.shape[0])


def _check_updates(manifest: Manifest, rank: int, updates: Sequence[DeviceUpdate], trainable: Trainable) -> None:
    if not updates:
        msg = "no update to aggregate: expected one or more"
        raise AggregationError(msg)
    layouts: dict[tuple[int, int], AdapterLayout] = {}
    for before, update in zip([None, *updates], updates, strict=False):
        if before is not None and before.device_id == update.device_id:
            msg = f"device {update.device_id} has two updates, expected one"
            raise AggregationError(msg, device_id=update.device_id)
        if update.num_examples < 0:
            msg = f"device {update.device_id} has {update.num_examples} examples, expected 0 or more"
            raise AggregationError(msg, device_id=update.device_id)
        if update.rank > rank:
            msg = f"device {update.device_id} has rank {update.rank}, the global adapter has {rank}"
            raise AggregationError(msg, device_id=update.device_id)
        if update.is_checked:
            continue
        try:
            kind = id(update.plan), update.rank
            if kind not in layouts:
                layouts[kind] = AdapterLayout.of(manifest, update.plan, update.rank).trained(trainable)
            layouts[kind].check(update.tensors)
        except WireError as error:
            msg = f"update of device {update.device_id} does not fit: {error}"
            raise AggregationError(msg, device_id=update.device_id) from error
        _check_importance(update)
    if sum(update.num_examples for update in updates) == 0:
        msg = f"{len(updates)} updates have no examples together: their total weight is zero"
        raise AggregationError(msg)


def _check_importance(update: DeviceUpdate) -> None:
    for (layer, group), scores in update.importance.items():
        units = update.plan.units.get((layer, group))
        size = 0 if units is None else units.size
        if scores.shape != (size,) or not np.isfinite(scores).all() or (scores < 0).any():
            msg = (
                f"update of device {update.device_id} does not fit: importance of layer {layer}, {group}: "
                f"need {size} finite scores of 0 or more, got {scores.shape}"
            )
            raise AggregationError(msg, device_id=update.device_id)
