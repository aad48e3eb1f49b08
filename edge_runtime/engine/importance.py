"""Importance of units from LoRA factors and their gradients, without gradients of frozen weights.

For a target with frozen weight ``W``, factors ``A`` and ``B``, their gradients ``gA`` and ``gB``, and ``s`` = alpha / r
(LoRAPrune, Zhang et al. 2023, https://arxiv.org/abs/2305.18403, and its public code):

    G = gB A + B gA - gB gA             estimate of the gradient with respect to B A
    S = | G o (W + s B A) |             first-order change of the loss when an element is removed
    v = sums of S over each unit's rows (outputs pruned) or columns (inputs pruned)
    score = sum over the group's coupled matrices of v / ||v||_2

The paper squares S; the public code, which this follows, does not. With grouped-query attention a unit is a key/value
head with all its query heads: ``unit_size`` of each target is the number of its rows or columns. Scores are smoothed,
``score_t = 0.9 score_{t-1} + 0.1 score``, and a group whose new scores are not finite is skipped. Two rules are ours:
smoothing starts from the first scores instead of zero, and a matrix whose sums are all zero adds nothing.

``G`` and ``W + s B A`` are computed for a few rows at a time: two products of inner size ``2 r`` and ``r`` that stay in
the cache. docs/importance.md has the cost beside a training step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, PruneAxis, TargetSpec
from edge_runtime.formats.plan import Plan

Array = npt.NDArray[np.float32]
Scores = dict[tuple[int, str], Array]
"""``(layer, group)`` to one score per kept unit, float32 ``[num_kept]``, 0 or more."""

SMOOTHING: Final = 0.9
"""Weight of the earlier score."""

_BLOCK_ELEMENTS: Final = 1 << 16
"""Elements of a matrix that are computed at a time: 256 KiB, which a core's cache holds."""


def unit_scores(
    manifest: Manifest,
    weights: Mapping[str, Array],
    adapter: Mapping[str, Array],
    gradient: Mapping[str, Array],
    lora_scaling: float,
) -> Scores:
    """Scores of all kept units, from one gradient; see the module for the formula.

    Args:
        manifest: the artifact's manifest.
        weights: frozen weights by name, sliced or not, float32.
        adapter: LoRA factors by name, under the same plan.
        gradient: gradient of the loss with respect to ``adapter``, by name; factors without one are not trained.
        lora_scaling: alpha / rank.

    Returns:
        Scores of every group that has a target; they may be not finite.
    """
    totals: dict[tuple[int, str], npt.NDArray[np.float64]] = {}
    for target in manifest.targets:
        axes = [prune for prune in (target.out_prune, target.in_prune) if prune is not None]
        if not axes:
            continue
        a, b = adapter[names.lora_a(target.module)], adapter[names.lora_b(target.module)]
        grad_a, grad_b = _gradients(target, a, b, gradient)
        weight = weights[f"{target.module}.weight"]
        with np.errstate(over="ignore", invalid="ignore"):  # the tracker skips values that are not finite
            rows, columns = sensitivity_sums(weight, a, b, grad_a, grad_b, lora_scaling)
            vectors = [_unit_vector(rows if prune.axis == 0 else columns, prune) for prune in axes]
        for prune, vector in zip(axes, vectors, strict=True):
            key = (target.layer, prune.group)
            totals[key] = totals[key] + vector if key in totals else vector
    return {key: total.astype(np.float32) for key, total in totals.items()}


def sensitivity_sums(
    weight: Array, a: Array, b: Array, grad_a: Array, grad_b: Array, lora_scaling: float
) -> tuple[Array, Array]:
    """Row and column sums of ``S`` for one target, float32 ``[out]`` and ``[in]``.

    Args:
        weight: W, float32 ``[out, in]``.
        a: A, float32 ``[rank, in]``.
        b: B, float32 ``[out, rank]``.
        grad_a: gradient of the loss with respect to A.
        grad_b: gradient of the loss with respect to B.
        lora_scaling: s.
    """
    num_out, num_in = weight.shape
    left, right = np.hstack([grad_b, b - grad_b]), np.vstack([a, grad_a])  # G = gB A + (B - gB) gA
    scaled = b * np.float32(lora_scaling)
    rows, columns = np.empty(num_out, np.float32), np.zeros(num_in, np.float32)
    step = max(1, _BLOCK_ELEMENTS // num_in)
    for first in range(0, num_out, step):
        block = slice(first, first + step)
        product = left[block] @ right
        merged = scaled[block] @ a
        merged += weight[block]
        product *= merged
        np.abs(product, out=product)
        rows[block] = product.sum(axis=1)
        columns += product.sum(axis=0)
    return rows, columns


class ImportanceTracker:
    """Smoothed scores of one assignment; they shrink with its plan.

    Args:
        plan: units at the start.
        smoothing: weight of the earlier score, in [0, 1).
    """

    def __init__(self, plan: Plan, smoothing: float = SMOOTHING) -> None:
        self._plan = plan
        self._smoothing = np.float32(smoothing)
        self._scores: Scores = {}

    def update(self, scores: Mapping[tuple[int, str], Array]) -> None:
        """Add new scores; a group with a value that is not finite is skipped."""
        for key, new in scores.items():
            if not np.isfinite(new).all():
                continue
            old = self._scores.get(key)
            self._scores[key] = new if old is None else old * self._smoothing + new * (1 - self._smoothing)

    def restrict(self, plan: Plan) -> None:
        """Forget the scores of units that a smaller plan lacks."""
        for layer, group in self._scores:
            kept = plan.positions(layer, PruneAxis(axis=0, group=group, unit_size=1), self._plan)
            self._scores[layer, group] = self._scores[layer, group][kept]
        self._plan = plan

    def so_far(self) -> Scores:
        """Smoothed scores of the groups that have scores, for :meth:`take_up`."""
        return dict(self._scores)

    def take_up(self, scores: Scores) -> None:
        """Continue from the scores of another tracker under the same plan, see :func:`check_scores`."""
        self._scores = {key: value.copy() for key, value in scores.items()}

    def scores(self) -> Scores:
        """Scores of every group of the plan; empty if a group has no finite scores yet."""
        if any(key not in self._scores for key in self._plan.units):
            return {}
        return {key: self._scores[key].copy() for key in self._plan.units}


def check_scores(plan: Plan, scores: Scores) -> None:
    """Refuse scores that do not fit ``plan``; groups may be missing.

    Raises:
        PlanError: the plan lacks a group.
        TensorError: the number of scores is not the number of units, or a score is not finite.
    """
    for (layer, group), value in scores.items():
        num_kept = plan.kept(layer, group).size
        if value.shape != (num_kept,) or not np.isfinite(value).all():
            msg = (
                f"scores of layer {layer}, {group} have shape {value.shape}, expected ({num_kept},), all of them finite"
            )
            raise TensorError(msg)


def _gradients(target: TargetSpec, a: Array, b: Array, gradient: Mapping[str, Array]) -> tuple[Array, Array]:
    """Gradients of both factors; zeros for a factor that is not trained."""
    grad_a, grad_b = gradient.get(names.lora_a(target.module)), gradient.get(names.lora_b(target.module))
    return np.zeros_like(a) if grad_a is None else grad_a, np.zeros_like(b) if grad_b is None else grad_b


def _unit_vector(sums: Array, prune: PruneAxis) -> npt.NDArray[np.float64]:
    """Sum over the rows or columns of each unit, divided by the L2 norm of all sums, float64 ``[num_kept]``."""
    units: npt.NDArray[np.float64] = sums.astype(np.float64).reshape(-1, prune.unit_size).sum(axis=1)
    norm = np.linalg.norm(units)
    return units if norm == 0.0 else units / norm
