"""Payloads, the contents of blobs. Down: the adapter to start from, and merged factors. Up: adapter and importance.

``merged`` are low-rank factors that are added to the frozen weight of a target, with the run's ``lora_scaling``:

    W + lora_scaling * merged_B @ merged_A

With them aggregation rules that add a part of the update to the base (FLoRA, arXiv 2409.05976; FedEx-LoRA, arXiv
2410.09432) need no new artifact. Importance and merged factors are optional; a payload without both is an adapter.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, Trainable, target_indices
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import WireDtype, decode_tensors, encode_tensors

Array = npt.NDArray[np.float32]
Merged = Mapping[str, tuple[Array, Array]]
"""Merged factors by target module: A float32 ``[m, in]`` and B float32 ``[out, m]``; ``m`` may differ by target."""

_IMPORTANCE: Final = re.compile(re.escape(names.IMPORTANCE_PREFIX) + r"(0|[1-9][0-9]{0,5})\.([A-Za-z_]+)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The tensors of a blob, by their kind."""

    adapter: dict[str, Array]
    """Under the names of :mod:`edge_runtime.formats.adapter`."""
    importance: dict[tuple[int, str], Array] = dataclasses.field(default_factory=dict)
    """``(layer, group)`` to one score per kept unit, float32 ``[num_kept]``; empty = none."""
    merged: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    """See :data:`Merged`; empty = none."""


def encode_payload(payload: Payload, dtype: WireDtype = "float32") -> bytes:
    """Safetensors bytes of a payload; scores are always float32, because float16 may not hold their range.

    Raises:
        TensorError: a value does not fit ``dtype``.
    """
    scores = {names.importance(layer, group): value for (layer, group), value in payload.importance.items()}
    tensors = {**payload.adapter, **scores}
    for module, (a, b) in payload.merged.items():
        tensors[names.merged_a(module)], tensors[names.merged_b(module)] = a, b
    return encode_tensors(tensors, dtype, exact=scores.keys())


def decode_payload(blob: bytes) -> Payload:
    """Parse a blob from outside; :func:`check_payload` checks whether it fits plan and rank.

    Raises:
        TensorError: the blob is malformed or over a limit, a name is malformed, or one of two merged factors is
            missing.
    """
    return payload_of(decode_tensors(blob))


def payload_of(tensors: Mapping[str, Array]) -> Payload:
    """Sort the tensors of a blob by kind, which follows from their names.

    Raises:
        TensorError: a name is malformed, or one of two merged factors is missing.
    """
    payload, halves = Payload(adapter={}), dict[str, dict[str, Array]]()
    for name, value in tensors.items():
        if name.startswith(names.IMPORTANCE_PREFIX):
            match = _IMPORTANCE.fullmatch(name)
            if match is None:
                msg = f"payload tensor {name!r} is not named {names.IMPORTANCE_PREFIX}<layer>.<group>"
                raise TensorError(msg)
            payload.importance[int(match[1]), match[2]] = value
        elif name.endswith((names.MERGED_A_SUFFIX, names.MERGED_B_SUFFIX)):
            suffix = names.MERGED_A_SUFFIX if name.endswith(names.MERGED_A_SUFFIX) else names.MERGED_B_SUFFIX
            halves.setdefault(name.removesuffix(suffix), {})[suffix] = value
        else:
            payload.adapter[name] = value
    for module, half in halves.items():
        if len(half) < 2:
            msg = f"payload has one merged factor of {module!r} without the other"
            raise TensorError(msg)
        payload.merged[module] = half[names.MERGED_A_SUFFIX], half[names.MERGED_B_SUFFIX]
    return payload


def check_payload(
    manifest: Manifest,
    plan: Plan,
    rank: int,
    payload: Payload,
    *,
    is_update: bool,
    trainable: Trainable = "all",
    layout: AdapterLayout | None = None,
) -> None:
    """Refuse a payload that does not fit.

    Args:
        manifest: the artifact's manifest.
        plan: units that stay; for an update the last plan of the assignment.
        rank: LoRA rank of the adapter.
        payload: the decoded payload.
        is_update: whether a device sent it. An update may hold importance but no merged factors, and has A factors only
            if they are trained. A payload of the server may hold merged factors but no importance, and has all factors.
        trainable: trained tensors of the assignment.
        layout: layout of manifest, plan and rank, if the caller has made it already.

    Raises:
        TensorError: names the first offending tensor.
    """
    layout = layout or AdapterLayout.of(manifest, plan, rank)
    (layout.trained(trainable) if is_update else layout).check(payload.adapter)
    if payload.merged and is_update:
        msg = "an update holds merged factors; only the coordinator merges"
        raise TensorError(msg)
    if payload.importance and not is_update:
        msg = "a payload to start from holds importance; only updates do"
        raise TensorError(msg)
    check_merged(manifest, plan, payload.merged)
    _check_importance(plan, payload.importance)


def check_merged(manifest: Manifest, plan: Plan, merged: Merged) -> None:
    """Refuse merged factors that do not fit the targets under ``plan``.

    Raises:
        TensorError: names the first target that is unknown, or whose factors have wrong shapes, an inner size outside
            [1, min(in_features, out_features)], or values that are not finite.
    """
    targets = {target.module: target for target in manifest.targets}
    for module, (a, b) in merged.items():
        target = targets.get(module)
        if target is None:
            msg = f"merged factors of {module!r}, which is not a LoRA target of this model"
            raise TensorError(msg)
        rows, columns = target_indices(target, plan)
        num_out = target.out_features if rows is None else rows.size
        num_in = target.in_features if columns is None else columns.size
        inner = a.shape[0] if a.ndim == 2 else 0
        most = min(target.in_features, target.out_features)
        if not 1 <= inner <= most or a.shape != (inner, num_in) or b.shape != (num_out, inner):
            msg = (
                f"merged factors of {module!r} have shapes {a.shape} and {b.shape}, "
                f"expected (m, {num_in}) and ({num_out}, m) with m from 1 to {most}"
            )
            raise TensorError(msg)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            msg = f"merged factors of {module!r} hold values that are not finite"
            raise TensorError(msg)


def restrict_merged(manifest: Manifest, merged: Merged, plan: Plan) -> dict[str, tuple[Array, Array]]:
    """Restrict merged factors under the full plan to ``plan``; contiguous float32 copies."""
    out: dict[str, tuple[Array, Array]] = {}
    for target in manifest.targets:
        if target.module in merged:
            a, b = merged[target.module]
            rows, columns = target_indices(target, plan)
            out[target.module] = (
                np.array(a if columns is None else a[:, columns], np.float32, order="C"),
                np.array(b if rows is None else b[rows], np.float32, order="C"),
            )
    return out


def _check_importance(plan: Plan, importance: Mapping[tuple[int, str], Array]) -> None:
    if not importance:
        return
    if importance.keys() != plan.units.keys():
        differing = sorted(importance.keys() ^ plan.units.keys())
        msg = f"importance covers other groups than the plan, for example {differing[0]} ({len(differing)} differ)"
        raise TensorError(msg)
    for (layer, group), scores in importance.items():
        num_kept = plan.kept(layer, group).size
        if scores.shape != (num_kept,) or not np.isfinite(scores).all() or (scores < 0).any():
            msg = f"importance of layer {layer}, {group}: need {num_kept} finite scores of 0 or more"
            raise TensorError(msg)
