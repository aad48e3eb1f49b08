"""Slicing: from the base weights and a plan to the physically smaller weights that a graph takes.

An arm is nothing but sliced arrays: the graphs' sizes are symbolic, so what a plan removes is neither stored, nor
multiplied, nor differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.payload import Merged, check_merged
from edge_runtime.wire.plan import Indices, Plan

Weights = dict[str, npt.NDArray[np.float32]]
"""Frozen weights by name, float32, C-contiguous, read-only where they are views of the base blob."""


_Scalar = TypeVar("_Scalar", bound=np.generic)

NOTHING_MERGED: Final[Merged] = MappingProxyType({})


def slice_weights(
    artifact: Artifact, plan: Plan, merged: Merged = NOTHING_MERGED, *, lora_scaling: float = 1.0
) -> Weights:
    """The frozen weights under ``plan``, by name: ``W``, or ``W + lora_scaling * merged_B @ merged_A``.

    A float32 tensor that the plan leaves whole stays a view of the memory-mapped base blob; everything else is a copy.

    Args:
        artifact: the opened artifact.
        plan: units that stay.
        merged: factors under ``plan``, by target module; see :mod:`edge_runtime.wire.payload`.
        lora_scaling: alpha / rank, what the factors were trained with; of no effect without ``merged``.

    Returns:
        C-contiguous float32 arrays, one for each tensor of the manifest; every axis named in ``prune`` has the plan's
        size.

    Raises:
        PlanError: the plan is for another model.
        TensorError: merged factors do not fit the plan.
        ArtifactCorruptedError: the base blob is not what the manifest says.
    """
    plan.check(artifact.manifest)
    check_merged(artifact.manifest, plan, merged)
    factors = {f"{module}.weight": pair for module, pair in merged.items()}
    weights: Weights = {}
    for spec in artifact.manifest.tensors:
        value = artifact.stored(spec)
        for prune in spec.prune:
            if spec.layer is not None:
                value = _take(value, plan.indices(spec.layer, prune), prune.axis)
        weight = np.ascontiguousarray(value, dtype=np.float32)
        if spec.name in factors:
            a, b = factors[spec.name]
            weight = np.add(weight, (b * np.float32(lora_scaling)) @ a, dtype=np.float32)
        weights[spec.name] = weight
    artifact.release()
    return weights


def shrink_weights(
    manifest: Manifest, weights: Mapping[str, npt.NDArray[np.float32]], plan: Plan, smaller: Plan
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Weights that lose something when ``plan`` becomes ``smaller``, one at a time, so that few are there twice.

    Args:
        manifest: the artifact's manifest.
        weights: frozen weights under ``plan``, by name; may be changed while this runs.
        plan: units that are there.
        smaller: units that stay, a part of them.

    Yields:
        Name and new array, float32, C-contiguous.
    """
    for spec in manifest.tensors:
        value = weights[spec.name]
        for prune in spec.prune:
            if spec.layer is not None:
                value = _take(value, smaller.positions(spec.layer, prune, plan), prune.axis)
        if value.shape != weights[spec.name].shape:
            yield spec.name, np.ascontiguousarray(value)


def _take(value: npt.NDArray[_Scalar], indices: Indices, axis: int) -> npt.NDArray[_Scalar]:
    return value if indices.size == value.shape[axis] else np.take(value, indices, axis=axis)
