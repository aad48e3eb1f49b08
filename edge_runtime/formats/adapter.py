"""Adapters: the trainable tensors for one plan and one rank, by name and as one flat vector.

Order of the flat vector, which the graphs' ``Split`` follows: targets in the order of the manifest, A before B, then
the dense tensors. A *full* adapter is under the full plan; a device gets the part under its plan and rank.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, TargetSpec
from edge_runtime.formats.plan import Indices, Plan

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]

Trainable = Literal["all", "lora_b"]
"""The trained tensors of an adapter; ``lora_b``: all except the A factors (FFA-LoRA, arXiv 2403.12313)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockSlices:
    """Slices of the flat vector: one for each block, in the order of the manifest, then the dense tensors."""

    blocks: tuple[slice, ...]
    block_sizes: tuple[npt.NDArray[np.int64], ...]
    """Element counts of each block's tensors."""
    dense: slice
    dense_sizes: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """Names and shapes of the trainable tensors for one plan and rank, in the order of the flat vector."""

    rank: int
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, manifest: Manifest, plan: Plan, rank: int) -> Self:
        """Layout for ``plan`` and ``rank``.

        Raises:
            TensorError: the rank is outside [1, MAX_RANK].
        """
        if not 1 <= rank <= limits.MAX_RANK:
            msg = f"LoRA rank is {rank}, expected 1 to {limits.MAX_RANK}"
            raise TensorError(msg)
        shapes: dict[str, tuple[int, ...]] = {}
        for target in manifest.targets:
            rows, columns = target_indices(target, plan)
            shapes[names.lora_a(target.module)] = (rank, target.in_features if columns is None else columns.size)
            shapes[names.lora_b(target.module)] = (target.out_features if rows is None else rows.size, rank)
        for dense in manifest.dense:
            shapes[dense.name] = dense.shape
        return cls(rank=rank, shapes=shapes)

    def trained(self, trainable: Trainable) -> AdapterLayout:
        """The layout of the trained tensors, which a device sends back, in the same order."""
        if trainable == "all":
            return self
        shapes = {name: shape for name, shape in self.shapes.items() if not names.is_lora_a(name)}
        return AdapterLayout(rank=self.rank, shapes=shapes)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Element counts of the tensors, int64 ``[K]``: the graphs' ``split_sizes``."""
        return np.array([int(np.prod(s)) for s in self.shapes.values()], dtype=np.int64)

    @property
    def num_elements(self) -> int:
        """N, the length of the flat vector."""
        return int(self.sizes.sum())

    @property
    def places(self) -> dict[str, slice]:
        """Place of each tensor in the flat vector, by name."""
        ends = np.cumsum(self.sizes).tolist()
        return {name: slice(begin, end) for name, begin, end in zip(self.shapes, [0, *ends], ends, strict=False)}

    def parts(self, manifest: Manifest) -> BlockSlices:
        """Return the parts of the flat vector with the tensors of each block and with the dense tensors."""
        sizes, counts = self.sizes, [0] * manifest.num_layers
        for target in manifest.targets:
            counts[target.layer] += 2
        ends = np.cumsum([0, *counts]).tolist()
        offsets = np.cumsum([0, *sizes]).tolist()
        return BlockSlices(
            blocks=tuple(slice(offsets[begin], offsets[end]) for begin, end in itertools.pairwise(ends)),
            block_sizes=tuple(sizes[begin:end] for begin, end in itertools.pairwise(ends)),
            dense=slice(offsets[ends[-1]], offsets[-1]),
            dense_sizes=sizes[ends[-1] :],
        )

    def flatten(self, tensors: Tensors) -> Array:
        """All tensors as one float32 vector ``[N]``.

        Raises:
            TensorError: see :meth:`check`.
        """
        self.check(tensors)
        return np.concatenate([np.asarray(tensors[name], dtype=np.float32).reshape(-1) for name in self.shapes])

    def unflatten(self, flat: Array) -> dict[str, Array]:
        """Named views into a flat vector ``[N]``; nothing is copied.

        Raises:
            TensorError: the vector has another length.
        """
        if flat.shape != (self.num_elements,):
            msg = f"flat adapter has shape {flat.shape}, expected ({self.num_elements},)"
            raise TensorError(msg)
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def check(self, tensors: Tensors) -> None:
        """Refuse tensors that do not fit: a name missing or unknown, a wrong shape or type, a value not finite.

        Raises:
            TensorError: names the first offending tensor.
        """
        if set(tensors) != set(self.shapes):
            differing = sorted(set(tensors) ^ set(self.shapes))
            msg = f"adapter has other tensors than expected, for example {differing[0]!r} ({len(differing)} differ)"
            raise TensorError(msg)
        for name, shape in self.shapes.items():
            value = tensors[name]
            if value.shape != shape:
                msg = f"adapter tensor {name!r} has shape {value.shape}, expected {shape}"
                raise TensorError(msg)
            if value.dtype.kind != "f":
                msg = f"adapter tensor {name!r} has type {value.dtype}, expected a float"
                raise TensorError(msg)
            if not _is_finite(value):
                msg = f"adapter tensor {name!r} holds values that are not finite"
                raise TensorError(msg)


def _is_finite(value: Array) -> bool:
    with np.errstate(over="ignore"):
        total = np.vdot(value, value)  # needs no second array; finite only if all elements are
    return bool(np.isfinite(total)) or bool(np.isfinite(value).all())


def target_indices(target: TargetSpec, plan: Plan) -> tuple[Indices | None, Indices | None]:
    """Rows of B and columns of A that stay under ``plan``; None if that side is never pruned."""
    rows = None if target.out_prune is None else plan.indices(target.layer, target.out_prune)
    columns = None if target.in_prune is None else plan.indices(target.layer, target.in_prune)
    return rows, columns


def restrict(manifest: Manifest, full: Tensors, plan: Plan, rank: int) -> dict[str, Array]:
    """The part of a full adapter for a device with ``plan`` and ``rank``: kept coordinates, first components.

    Args:
        manifest: the artifact's manifest.
        full: adapter under the full plan, of rank ``rank`` or more.
        plan: units that stay.
        rank: components that stay, the leading ones.

    Returns:
        Contiguous float32 copies, in layout order.

    Raises:
        TensorError: the full adapter has fewer components than ``rank``.
    """
    out: dict[str, Array] = {}
    for target in manifest.targets:
        rows, columns = target_indices(target, plan)
        a, b = full[names.lora_a(target.module)], full[names.lora_b(target.module)]
        if a.shape[0] < rank:
            msg = f"adapter of rank {a.shape[0]} cannot be restricted to rank {rank}"
            raise TensorError(msg)
        a, b = a[:rank], b[:, :rank]
        out[names.lora_a(target.module)] = np.array(a if columns is None else a[:, columns], np.float32, order="C")
        out[names.lora_b(target.module)] = np.array(b if rows is None else b[rows], np.float32, order="C")
    for dense in manifest.dense:
        out[dense.name] = np.array(full[dense.name], np.float32, order="C")
    return out


def shrink(manifest: Manifest, tensors: Tensors, plan: Plan, smaller: Plan) -> dict[str, Array]:
    """The part of an adapter under ``plan`` that stays under a plan within it; all components stay.

    Args:
        manifest: the artifact's manifest.
        tensors: adapter, gradient or moments under ``plan``, by name.
        plan: current units.
        smaller: units that stay, a subset of them.

    Returns:
        Contiguous float32 copies, in layout order.
    """
    out: dict[str, Array] = {}
    for target in manifest.targets:
        a, b = tensors[names.lora_a(target.module)], tensors[names.lora_b(target.module)]
        if target.in_prune is not None:
            a = a[:, smaller.positions(target.layer, target.in_prune, plan)]
        if target.out_prune is not None:
            b = b[smaller.positions(target.layer, target.out_prune, plan)]
        out[names.lora_a(target.module)] = np.array(a, np.float32, order="C")
        out[names.lora_b(target.module)] = np.array(b, np.float32, order="C")
    for dense in manifest.dense:
        out[dense.name] = np.array(tensors[dense.name], np.float32, order="C")
    return out


def initial(manifest: Manifest, dense: Tensors, rank: int, rng: np.random.Generator) -> dict[str, Array]:
    """A fresh full adapter: A uniform in +-1/sqrt(in_features), B zero (PEFT's default), dense tensors as given."""
    out: dict[str, Array] = {}
    for target in manifest.targets:
        bound = 1.0 / np.sqrt(target.in_features)
        out[names.lora_a(target.module)] = rng.uniform(-bound, bound, (rank, target.in_features)).astype(np.float32)
        out[names.lora_b(target.module)] = np.zeros((target.out_features, rank), np.float32)
    for spec in manifest.dense:
        out[spec.name] = np.array(dense[spec.name], np.float32, order="C")
    AdapterLayout.of(manifest, Plan.full(manifest), rank).check(out)
    return out
