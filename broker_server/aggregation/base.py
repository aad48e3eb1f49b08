"""What an aggregation rule is, and the checks that come before any arithmetic.

Shape legend: ``R`` rank of the global adapter, ``r`` rank of a device's, ``O`` rows of B (outputs of the target), ``I``
columns of A (its inputs), ``K`` devices. With a suffix ``k``: of one device, under its plan.

A coordinate (one row of B, one column of A) that a device's plan removed is *not held* by that device: it counts
neither in the sum nor in the weight that the sum is divided by, otherwise pruned coordinates would be pulled to zero. A
coordinate that no device holds keeps its old value. In each target at most one side is ever pruned: the hidden size is
not.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from broker_server.errors import AggregationError
from edge_runtime.wire import names
from edge_runtime.wire.adapter import AdapterLayout
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.manifest import Manifest, TargetSpec
from edge_runtime.wire.plan import Plan

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdate:
    """One device's trained adapter."""

    device_id: str
    plan: Plan
    rank: int
    num_examples: int
    """Weight of the device, 0 or more."""
    tensors: Mapping[str, Float32]
    """Under ``plan`` and ``rank``, named as in :class:`edge_runtime.wire.adapter.AdapterLayout`."""


class Aggregation(abc.ABC):
    """A rule: subclasses combine the factors of one target; checks, order and dense tensors are done here."""

    name: ClassVar[str]

    def aggregate(
        self,
        manifest: Manifest,
        global_adapter: Mapping[str, Float32],
        updates: Sequence[DeviceUpdate],
        rng: np.random.Generator,
    ) -> dict[str, Float32]:
        """The new global adapter.

        The result does not depend on the order of ``updates``. All ranks share one scaling alpha / rank, so products of
        factors of different ranks may be added.

        Args:
            manifest: the artifact's manifest.
            global_adapter: the last one: full plan, rank ``R``, which the result has too.
            updates: one or more, each of a different device.
            rng: first values of components that are empty; drawn in the order of the manifest.

        Returns:
            Float32 tensors under the full plan and rank ``R``, in layout order.

        Raises:
            AggregationError: no update or no weight; a device twice; or an adapter whose names, shapes, rank, plan or
                values do not fit, naming device and tensor.
        """
        rank = _check_global(manifest, global_adapter)
        ordered = sorted(updates, key=lambda update: update.device_id)
        _check_updates(manifest, rank, ordered)
        out: dict[str, Float32] = {}
        for target in manifest.targets:
            key_a, key_b = names.lora_a(target.module), names.lora_b(target.module)
            old = _double(global_adapter[key_a]), _double(global_adapter[key_b])
            a, b = self._combine(target, old, ordered, rng)
            out[key_a] = np.ascontiguousarray(a, np.float32)
            out[key_b] = np.ascontiguousarray(b, np.float32)
        weights = np.array([update.num_examples for update in ordered], np.float64)
        for dense in manifest.dense:
            stacked = np.stack([_double(update.tensors[dense.name]) for update in ordered])
            out[dense.name] = np.average(stacked, axis=0, weights=weights).astype(np.float32)
        return out

    @abc.abstractmethod
    def _combine(
        self,
        target: TargetSpec,
        old: tuple[Float64, Float64],
        updates: Sequence[DeviceUpdate],
        rng: np.random.Generator,
    ) -> tuple[Float64, Float64]:
        """New factors A ``[R, I]``, B ``[O, R]`` of one target; ``updates`` are sorted and checked."""


def factors(target: TargetSpec, update: DeviceUpdate) -> tuple[Float64, Float64]:
    """A device's factors, float64: A ``[r, I_k]``, B ``[O_k, r]``."""
    a, b = update.tensors[names.lora_a(target.module)], update.tensors[names.lora_b(target.module)]
    return _double(a), _double(b)


def _double(value: Float32) -> Float64:
    return np.asarray(value, np.float64)


def _check_global(manifest: Manifest, adapter: Mapping[str, Float32]) -> int:
    """Rank of the global adapter, after a check of its tensors."""
    if not manifest.targets:
        msg = "model has no LoRA target: nothing to aggregate"
        raise AggregationError(msg)
    first = adapter.get(names.lora_a(manifest.targets[0].module))
    if first is None or first.ndim != 2:
        msg = f"global adapter lacks the matrix {names.lora_a(manifest.targets[0].module)!r}"
        raise AggregationError(msg)
    try:
        AdapterLayout.of(manifest, Plan.full(manifest), first.shape[0]).check(adapter)
    except WireError as error:
        msg = f"global adapter cannot be used: {error}"
        raise AggregationError(msg) from error
    return int(first.shape[0])


def _check_updates(manifest: Manifest, rank: int, updates: Sequence[DeviceUpdate]) -> None:
    if not updates:
        msg = "no update to aggregate: expected one or more"
        raise AggregationError(msg)
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
        try:
            update.plan.check(manifest)
            AdapterLayout.of(manifest, update.plan, update.rank).check(update.tensors)
        except WireError as error:
            msg = f"update of device {update.device_id} does not fit: {error}"
            raise AggregationError(msg, device_id=update.device_id) from error
    if sum(update.num_examples for update in updates) == 0:
        msg = f"{len(updates)} updates have no examples together: their total weight is zero"
        raise AggregationError(msg)
