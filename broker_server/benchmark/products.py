"""The matrix products of a training step, or of forward passes alone, counted from the model's shapes.

Only products that the step's mathematics needs are counted, none that an engine computes twice:

- forward: every linear layer, attention's scores and mixes, both products of every LoRA target, the head;
- backward: gradients with respect to activations wherever something below is trained; both factors of every target; of
  weights, only those that are trained whole (a classifier). Frozen weights have no gradient;
- nothing below the first trained factor: with factors on query and value, the first block needs gradients of its
  queries and values and not of its keys, and none of its input.

A product of ``[rows, inner]`` and ``[inner, columns]`` takes ``2 rows inner columns`` floating-point operations, FLOPs.
All positions of all blocks count; but where the first token of a sequence is scored alone (text-classification), the
last block needs keys and values of all and everything else of that token.

Shape legend: ``B`` examples of a batch, ``L`` length, ``T`` tokens (B L), ``R`` LoRA rank.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Final

from edge_runtime.formats.manifest import Manifest, TensorSpec
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import HEADS

_WEIGHT: Final = ".weight"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Product:
    """``batch`` matrix products of ``[rows, inner]`` and ``[inner, columns]``."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a product and a sum for each term."""
        return 2 * self.batch * self.rows * self.inner * self.columns


Products = Counter[Product]
"""Number of times that each product occurs in a step."""


def total_flops(products: Products) -> int:
    """FLOPs of all of them."""
    return sum(product.flops * count for product, count in products.items())


def products_of_step(manifest: Manifest, plan: Plan, rank: int, batch_size: int, length: int) -> Products:
    """Matrix products of one optimizer step on a batch without padding, counted as the module says.

    Args:
        manifest: the artifact's manifest.
        plan: units that stay.
        rank: LoRA rank.
        batch_size: B.
        length: L, tokens.
    """
    step = _Step(manifest, plan, rank, batch_size, length)
    is_trained = False  # True after the first trained block: gradients flow from there on
    for layer in range(manifest.num_layers):
        is_trained = step.block(layer, is_trained=is_trained)
    step.head(is_trained=is_trained)
    return step.products


def products_of_forward(
    manifest: Manifest, rank: int, batch_size: int, length: int, layers: range, *, is_scored: bool
) -> Products:
    """Matrix products of one forward pass through some blocks of the whole model, on a batch without padding.

    Args:
        manifest: the artifact's manifest.
        rank: LoRA rank; 0 = there are no factors.
        batch_size: B.
        length: L, tokens.
        layers: indices of the blocks.
        is_scored: whether the head follows.
    """
    step = _Step(manifest, Plan.full(manifest), rank, batch_size, length, has_backward=False)
    for layer in layers:
        step.block(layer, is_trained=False)
    if is_scored:
        step.head(is_trained=False)
    return step.products


class _Step:
    """Adds up the products of one step, stage by stage; without a backward pass nothing counts as trained."""

    def __init__(
        self, manifest: Manifest, plan: Plan, rank: int, batch_size: int, length: int, *, has_backward: bool = True
    ) -> None:
        self.products: Products = Counter()
        self._has_backward = has_backward
        self._manifest, self._plan, self._rank = manifest, plan, rank
        self._batch_size, self._length = batch_size, length
        self._tokens = batch_size * length
        self._targets = {target.module for target in manifest.targets}

    def block(self, layer: int, *, is_trained: bool) -> bool:
        """One block: attention, then the feed-forward part, each beside a residual connection.

        Args:
            layer: index of the block.
            is_trained: whether its input depends on something that is trained.

        Returns:
            Whether its output does.
        """
        is_short = self._manifest.scores_first_only and layer == self._manifest.num_layers - 1
        asking = 1 if is_short else self._length  # positions that the block computes for each sequence
        rows = self._batch_size * asking
        inward, outward = _by_role(self._manifest, layer, HEADS)
        depends = {
            _role(spec): self._linear(spec, rows if _role(spec) == "q" else self._tokens, is_trained=is_trained)
            for spec in inward
        }
        mixed = self._attention(layer, inward, depends, asking)
        for spec in outward:
            mixed = self._linear(spec, rows, is_trained=mixed)
        is_trained = is_trained or mixed
        inward, outward = _by_role(self._manifest, layer, None)
        depend = [self._linear(spec, rows, is_trained=is_trained) for spec in inward]
        for spec in outward:
            depend = [self._linear(spec, rows, is_trained=any(depend))]
        return is_trained or any(depend)

    def head(self, *, is_trained: bool) -> None:
        """Scores of the positions that are scored."""
        rows = self._batch_size
        if self._manifest.task == "causal-lm":
            rows *= self._length - 1
        for columns, inner in _head_shapes(self._manifest):
            self._add(rows, inner, columns)
            if is_trained:
                self._add(rows, columns, inner)
        for dense in self._manifest.dense:
            if len(dense.shape) == 2:
                columns, inner = dense.shape
                self._add(rows, inner, columns)
                if self._has_backward:
                    self._add(columns, rows, inner)
                if is_trained:
                    self._add(rows, columns, inner)

    def _linear(self, spec: TensorSpec, rows: int, *, is_trained: bool) -> bool:
        """One linear layer ``[out, in]``; whether its output depends on something that is trained."""
        out, inner = self._plan.shape(spec)
        is_target, rank = spec.name.removesuffix(_WEIGHT) in self._targets, self._rank
        self._add(rows, inner, out)
        if is_trained:
            self._add(rows, out, inner)
        if is_target and rank:
            self._add(rows, inner, rank)  # x A^T
            self._add(rows, rank, out)  # (x A^T) B^T
        if is_target and self._has_backward:
            self._add(out, rows, rank)  # gradient of B
            self._add(rows, out, rank)  # gradient of x A^T
            self._add(rank, rows, inner)  # gradient of A
            if is_trained:
                self._add(rows, rank, inner)
        return is_trained or (is_target and self._has_backward)

    def _attention(self, layer: int, inward: list[TensorSpec], depends: dict[str, bool], asking: int) -> bool:
        """Scores and mixes; query heads of one key/value head lie side by side in one product."""
        widths = {_role(spec): spec.prune[0].unit_size for spec in inward}
        size = widths["k"]
        group = widths["q"] // size
        batch = self._batch_size * self._plan.kept(layer, HEADS).size
        queries, keys = group * asking, self._length
        scored = depends["q"] or depends["k"]
        self._add(queries, size, keys, batch)  # Q K^T
        self._add(queries, keys, size, batch)  # P V
        if depends["v"]:
            self._add(keys, queries, size, batch)  # P^T dO
        if scored:
            self._add(queries, size, keys, batch)  # dO V^T
        if depends["q"]:
            self._add(queries, keys, size, batch)  # dS K
        if depends["k"]:
            self._add(keys, queries, size, batch)  # dS^T Q
        return scored or depends["v"]

    def _add(self, rows: int, inner: int, columns: int, batch: int = 1) -> None:
        self.products[Product(batch=batch, rows=rows, inner=inner, columns=columns)] += 1


def _by_role(manifest: Manifest, layer: int, group: str | None) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Matrices of a block whose rows belong to units of a group (None: any but heads), and those whose columns do."""
    inward: list[TensorSpec] = []
    outward: list[TensorSpec] = []
    for spec in manifest.tensors:
        if spec.layer != layer or len(spec.shape) != 2:
            continue
        for prune in spec.prune:
            if (prune.group == HEADS) == (group == HEADS):
                (inward if prune.axis == 0 else outward).append(spec)
    return inward, outward


def _role(spec: TensorSpec) -> str:
    """``q``, ``k`` or ``v``: how the names of both families' projections begin."""
    return spec.name.removesuffix(_WEIGHT).rpartition(".")[2][0]


def _head_shapes(manifest: Manifest) -> list[tuple[int, int]]:
    """Frozen matrices ``[out, in]`` of the head: those after the blocks, or the word embedding where it is tied."""
    last = max(index for index, spec in enumerate(manifest.tensors) if spec.layer is not None)
    found = [(spec.shape[0], spec.shape[1]) for spec in manifest.tensors[last + 1 :] if len(spec.shape) == 2]
    if not found and manifest.task == "causal-lm":
        found = [(spec.shape[0], spec.shape[1]) for spec in manifest.tensors if spec.name == manifest.word_embedding]
    return found
