"""Base weights in which some units are dead by construction, of both families: what importance has to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan

Array = npt.NDArray[np.float32]
Units = dict[tuple[int, str], list[int]]

LOUD = 6.0
"""Factor of the weights of a dead unit, which only looks important."""

KINDS = ("zero", "disconnected", "loud")
"""All weights of a unit are zero; nothing reads what it says; the same, and it says it loudly."""


def draw_units(manifest: Manifest, rng: np.random.Generator) -> Units:
    """A quarter of the units of every group, ascending."""
    return {
        (g.layer, g.group): sorted(rng.choice(g.num_units, g.num_units // 4, replace=False).tolist())
        for g in manifest.groups
    }


def plant(artifact: Artifact, dead: Units, kind: str) -> dict[str, Array]:
    """The unpruned base weights, float32, with the units ``dead`` made so in the way of ``kind``, one of KINDS.

    With grouped-query attention a unit is a key/value head with all its query heads.
    """
    weights = {name: value.copy() for name, value in slice_weights(artifact, Plan.full(artifact.manifest)).items()}
    for spec in artifact.manifest.tensors:
        for prune in spec.prune:
            if spec.layer is None:
                continue
            is_read = kind == "zero" or prune.axis == 1
            factor = 0.0 if is_read else (LOUD if kind == "loud" else 1.0)
            for unit in dead[spec.layer, prune.group]:
                index: list[Any] = [slice(None)] * len(spec.shape)
                index[prune.axis] = slice(unit * prune.unit_size, (unit + 1) * prune.unit_size)
                weights[spec.name][tuple(index)] *= factor
    return weights


def removed(manifest: Manifest, plan: Plan) -> Units:
    """Units that a plan leaves out, ascending."""
    return {
        (g.layer, g.group): np.setdiff1d(np.arange(g.num_units), plan.kept(g.layer, g.group)).tolist()
        for g in manifest.groups
    }
