"""Slicing: the base weights are cut by a plan to physically smaller weights, which are the inputs of the graphs.

The graphs' sizes are symbolic, so an arm needs only sliced arrays. Removed units are neither stored nor computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import MappingProxyType
from typing import Final

import numpy as np

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.frozen import FrozenWeights, Held, as_float32, take
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Merged, check_merged
from edge_runtime.formats.plan import Indices, Plan
from edge_runtime.formats.quantization import Quantized
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.zero_order.pool import Direction, moved, tensor_indices

NOTHING_MERGED: Final[Merged] = MappingProxyType({})


def slice_weights(
    artifact: Artifact,
    plan: Plan,
    merged: Merged = NOTHING_MERGED,
    *,
    lora_scaling: float = 1.0,
    keep_stored: Collection[str] = (),
    pool: SeedPool | None = None,
    wanted: Collection[str] | None = None,
) -> FrozenWeights:
    """The frozen weights under ``plan``, by name: ``W``, or ``W + lora_scaling * merged_B @ merged_A``.

    A tensor that the plan does not cut, and that needs no conversion, is a view of the memory-mapped base blob; all
    others are copies.

    Args:
        artifact: the opened artifact.
        plan: units that stay.
        merged: factors under ``plan``, by target module; see :mod:`edge_runtime.formats.payload`.
        lora_scaling: alpha / rank of the merged factors; without effect if there are none.
        keep_stored: tensors that keep their stored type if no factors are merged into them; all others are float32.
        pool: moves all weights before they are cut; None = the weights of the artifact.
        wanted: tensors to return; None = all.

    Returns:
        C-contiguous arrays, one for each wanted tensor; every axis named in ``prune`` has the plan's size.

    Raises:
        TensorError: merged factors do not fit the plan, or weights are stored in so few bits that no pool moves them.
        ArtifactCorruptedError: the base blob does not match the manifest.
    """
    direction = None if pool is None else Direction.of(pool)
    indices = {} if direction is None else tensor_indices(artifact.manifest)
    check_merged(artifact.manifest, plan, merged)
    factors = {f"{module}.weight": pair for module, pair in merged.items()}
    weights: dict[str, Held] = {}
    for spec in artifact.manifest.tensors:
        if wanted is not None and spec.name not in wanted:
            continue
        value = artifact.stored(spec)
        if direction is not None:
            value = moved(as_float32(value), indices[spec.name], direction)
        for prune in spec.prune:
            if spec.layer is not None:
                value = _take(value, plan.indices(spec.layer, prune), prune.axis)
        if spec.name in keep_stored and spec.name not in factors:
            weights[spec.name] = value if isinstance(value, Quantized) else np.ascontiguousarray(value)
            continue
        weight = np.ascontiguousarray(as_float32(value))
        if spec.name in factors:
            a, b = factors[spec.name]
            weight = np.add(weight, (b * np.float32(lora_scaling)) @ a, dtype=np.float32)
        weights[spec.name] = weight
    artifact.release()
    return FrozenWeights(weights)


def shrink_weights(manifest: Manifest, weights: FrozenWeights, plan: Plan, smaller: Plan) -> Iterator[tuple[str, Held]]:
    """Cut the weights that shrink when ``plan`` becomes ``smaller``, one at a time to save memory.

    Args:
        manifest: the artifact's manifest.
        weights: frozen weights under ``plan``; the caller may replace them meanwhile.
        plan: current units.
        smaller: units that stay, a subset of them.

    Yields:
        Name and new value, in the type in which the weight is held.
    """
    for spec in manifest.tensors:
        value = weights.held(spec.name)
        for prune in spec.prune:
            if spec.layer is not None:
                value = _take(value, smaller.positions(spec.layer, prune, plan), prune.axis)
        if value.shape != weights.held(spec.name).shape:
            yield spec.name, value if isinstance(value, Quantized) else np.ascontiguousarray(value)


def _take(value: Held, indices: Indices, axis: int) -> Held:
    return value if indices.size == value.shape[axis] else take(value, indices, axis)
