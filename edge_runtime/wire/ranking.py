"""From importance to plans: one ranking for all arms, so that a larger ratio's plan lies within a smaller one's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge_runtime.wire.errors import PlanError
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.plan import Plan, uniform_num_kept

Importance = Mapping[tuple[int, str], npt.NDArray[np.float32]]
"""``(layer, group)`` to one score per unit, float32 ``[num_units]``; higher stays longer."""


def plan_at(manifest: Manifest, importance: Importance, pruning_ratio: float) -> Plan:
    """The plan that removes about ``pruning_ratio`` of the units of every group, least important first (ours).

    The same share is removed from every layer, so that widths stay equal across layers, as key/value caches of deployed
    decoders need them. Ties fall to the unit with the larger index, which makes plans nested in every case.

    Args:
        manifest: the artifact's manifest.
        importance: finite scores for every group of the manifest.
        pruning_ratio: requested share, in [0, 1).

    Raises:
        PlanError: the ratio is out of range, or scores are missing, of a wrong length or not finite.
    """
    if not 0.0 <= pruning_ratio < 1.0:
        msg = f"pruning ratio is {pruning_ratio}, expected 0 <= ratio < 1"
        raise PlanError(msg)
    check_importance(manifest, importance)
    kept = {}
    for spec in manifest.groups:
        scores = importance[spec.layer, spec.group]
        order = np.argsort(-scores.astype(np.float64), kind="stable")
        kept[spec.layer, spec.group] = np.sort(order[: uniform_num_kept(spec, pruning_ratio)])
    return Plan.from_kept(manifest, kept)


def check_importance(manifest: Manifest, importance: Importance) -> None:
    """Refuse importance that does not cover the manifest's groups.

    Raises:
        PlanError: names the first group whose scores are missing, of a wrong length or not finite.
    """
    for spec in manifest.groups:
        scores = importance.get((spec.layer, spec.group))
        if scores is None or scores.shape != (spec.num_units,) or not np.isfinite(scores).all():
            got = None if scores is None else scores.shape
            msg = f"importance of layer {spec.layer}, {spec.group}: need {spec.num_units} finite scores, got {got}"
            raise PlanError(msg)


def to_tensors(importance: Importance) -> dict[str, npt.NDArray[np.float32]]:
    """Importance as named tensors, ``<layer>.<group>``, for a safetensors file."""
    return {f"{layer}.{group}": scores for (layer, group), scores in importance.items()}


def from_tensors(tensors: Mapping[str, npt.NDArray[np.float32]]) -> dict[tuple[int, str], npt.NDArray[np.float32]]:
    """Inverse of :func:`to_tensors`.

    Raises:
        PlanError: a name is not ``<layer>.<group>``.
    """
    out = {}
    for name, scores in tensors.items():
        layer, dot, group = name.partition(".")
        if not dot or not layer.isdigit():
            msg = f"importance tensor {name!r} is not named <layer>.<group>"
            raise PlanError(msg)
        out[int(layer), group] = scores
    return out
