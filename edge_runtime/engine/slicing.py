"""Slicing: from the base weights and a plan to the physically smaller weights that a graph takes.

An arm is nothing but sliced arrays: the graphs' sizes are symbolic, so what a plan removes is neither stored, nor
multiplied, nor differentiated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.plan import Indices, Plan

Weights = dict[str, npt.NDArray[np.float32]]
"""Frozen weights by name, float32, C-contiguous, read-only where they are views of the base blob."""


def slice_weights(artifact: Artifact, plan: Plan) -> Weights:
    """The frozen weights under ``plan``, by name.

    A float32 tensor that the plan leaves whole stays a view of the memory-mapped base blob; everything else is a copy.

    Args:
        artifact: the opened artifact.
        plan: units that stay.

    Returns:
        C-contiguous float32 arrays, one for each tensor of the manifest; every axis named in ``prune`` has the plan's
        size.

    Raises:
        PlanError: the plan is for another model.
        ArtifactCorruptedError: the base blob is not what the manifest says.
    """
    plan.check(artifact.manifest)
    weights: Weights = {}
    for spec in artifact.manifest.tensors:
        value = artifact.stored(spec)
        for prune in spec.prune:
            if spec.layer is not None:
                value = _take(value, plan.indices(spec.layer, prune), prune.axis)
        weights[spec.name] = np.ascontiguousarray(value, dtype=np.float32)
    artifact.release()
    return weights


def _take(value: npt.NDArray[np.generic], indices: Indices, axis: int) -> npt.NDArray[np.generic]:
    return value if indices.size == value.shape[axis] else np.take(value, indices, axis=axis)
