"""Plans from importance. All arms use one ranking, so the plan of a larger ratio is within that of a smaller ratio."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.errors import PlanError
from edge_runtime.formats.manifest import GroupSpec, Manifest
from edge_runtime.formats.plan import Plan

Importance = Mapping[tuple[int, str], npt.NDArray[np.float32]]
"""``(layer, group)`` to one score per unit, float32 ``[num_units]``; units with higher scores stay longer."""

HEADS: Final = "heads"
"""Group of a block's attention heads; with grouped-query attention a unit is a key/value head and its query heads."""

_LAYER: Final = re.compile(r"0|[1-9][0-9]{0,5}")

AUTOMATIC: Final = -1
"""Number of protected layers that :meth:`PlanPolicy.resolved` chooses by the model's depth."""


Protected = Annotated[int, msgspec.Meta(ge=-limits.MAX_LAYERS, le=limits.MAX_LAYERS)]


class PlanPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scope in which units are ranked against each other, and the layers that are never pruned."""

    scope: Literal["layer", "global"] = "layer"
    """``layer``: every unprotected layer loses the same share. ``global``: units of a group are ranked over all
    unprotected layers together, so layers end with different widths."""
    protect_first: Protected = 0
    """Layers at the input that are never pruned; -1 = a tenth of all, rounded down (LoRAPrune, arXiv 2305.18403)."""
    protect_last: Protected = 0
    """Layers at the output that are never pruned; -1 = one, of models of five layers or more (after LoRAPrune)."""

    def resolved(self, num_layers: int) -> Self:
        """The policy with its automatic numbers replaced by those for ``num_layers``.

        Raises:
            PlanError: no layer is left to prune, or a number is below -1.
        """
        first = num_layers // 10 if self.protect_first == AUTOMATIC else self.protect_first
        last = int(num_layers >= 5) if self.protect_last == AUTOMATIC else self.protect_last
        if min(first, last) < 0 or first + last >= num_layers:
            msg = f"protecting {first} first and {last} last of {num_layers} layers: one layer or more must be left"
            raise PlanError(msg)
        return type(self)(scope=self.scope, protect_first=first, protect_last=last)

    def to_metadata(self) -> dict[str, str]:
        """The policy as metadata of an importance file."""
        return {name: str(value) for name, value in msgspec.structs.asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Inverse of :meth:`to_metadata`; other keys are ignored, and missing keys have their default.

        Raises:
            PlanError: a value is invalid.
        """
        known = {name: metadata[name] for name in cls.__struct_fields__ if name in metadata}
        try:
            return msgspec.convert(known, cls, strict=False)
        except msgspec.ValidationError as error:
            msg = f"importance carries no plan policy that this release knows: {error}"
            raise PlanError(msg) from error


DEFAULT_POLICY: Final = PlanPolicy()
"""The default policy: every layer loses the same share."""


def plan_at(
    manifest: Manifest, importance: Importance, pruning_ratio: float, policy: PlanPolicy = DEFAULT_POLICY
) -> Plan:
    """The plan that removes about ``pruning_ratio`` of the units of every group, least important first (ours).

    The ratio is of all layers: the other layers lose more units to make up for protected layers, but each keeps at
    least one unit. Heads of a decoder are an exception: every layer keeps the same number, protected or not, because
    the key/value cache of a deployed decoder has one width; its channels follow the policy. Of units with equal scores
    the one with the larger index (and, over layers, in the later layer) is removed first, so plans are always nested.

    Args:
        manifest: the artifact's manifest.
        importance: finite scores for every group of the manifest.
        pruning_ratio: requested share, in [0, 1).
        policy: scope of the ranking and protected layers.

    Raises:
        PlanError: the ratio is out of range, scores are missing, of a wrong length or not finite, or the policy leaves
            no layer to prune.
    """
    if not 0.0 <= pruning_ratio < 1.0:
        msg = f"pruning ratio is {pruning_ratio}, expected 0 <= ratio < 1"
        raise PlanError(msg)
    check_importance(manifest, importance)
    policy = policy.resolved(manifest.num_layers)
    kept: dict[tuple[int, str], npt.NDArray[np.int64]] = {}
    for group in dict.fromkeys(spec.group for spec in manifest.groups):
        specs = [spec for spec in manifest.groups if spec.group == group]
        if group == HEADS and manifest.task == "causal-lm":
            kept |= _keep_by_layer(specs, specs, importance, pruning_ratio)
            continue
        last = manifest.num_layers - policy.protect_last
        free = [spec for spec in specs if policy.protect_first <= spec.layer < last]
        keep = _keep_by_layer if policy.scope == "layer" else _keep_over_layers
        kept |= keep(specs, free, importance, pruning_ratio)
    return Plan.from_kept(manifest, kept)


def _keep_by_layer(
    specs: list[GroupSpec], free: list[GroupSpec], importance: Importance, pruning_ratio: float
) -> dict[tuple[int, str], npt.NDArray[np.int64]]:
    """Units of the ``free`` layers that stay, each layer ranked by itself."""
    wanted = pruning_ratio * sum(spec.num_units for spec in specs) / max(1, sum(spec.num_units for spec in free))
    return {
        (spec.layer, spec.group): np.sort(_ranked(importance[spec.layer, spec.group])[: _num_kept(spec, wanted)])
        for spec in free
    }


def _keep_over_layers(
    specs: list[GroupSpec], free: list[GroupSpec], importance: Importance, pruning_ratio: float
) -> dict[tuple[int, str], npt.NDArray[np.int64]]:
    """Units of the ``free`` layers that stay, ranked together; the best of each layer always stays."""
    if not free:
        return {}
    num_removed = pruning_ratio * sum(spec.num_units for spec in specs)
    num_free = sum(spec.num_units for spec in free)
    num_kept = max(len(free), int(np.floor(num_free - num_removed + 0.5)))
    scores = np.concatenate([importance[spec.layer, spec.group].astype(np.float64) for spec in free])
    starts = np.cumsum([0, *(spec.num_units for spec in free)])
    for start, spec in zip(starts, free, strict=False):
        scores[start + _ranked(importance[spec.layer, spec.group])[0]] = np.inf
    chosen = np.sort(_ranked(scores)[:num_kept])
    return {
        (spec.layer, spec.group): chosen[(chosen >= start) & (chosen < start + spec.num_units)] - start
        for start, spec in zip(starts, free, strict=False)
    }


def _num_kept(spec: GroupSpec, wanted: float) -> int:
    """As :func:`edge_runtime.formats.plan.uniform_num_kept`, for a number that may exceed the group's units."""
    return max(1, int(np.floor(spec.num_units * (1.0 - wanted) + 0.5)))


def _ranked(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Indices by descending score; with equal scores the smaller index comes first."""
    return np.argsort(-scores.astype(np.float64), kind="stable")


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
        if not dot or _LAYER.fullmatch(layer) is None:
            msg = f"importance tensor {name!r} is not named <layer>.<group>"
            raise PlanError(msg)
        out[int(layer), group] = scores
    return out
