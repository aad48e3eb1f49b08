"""Parts that the graphs of both modes share, beside stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.formats import names

if TYPE_CHECKING:
    from edge_runtime.formats.manifest import PruneAxis
    from exporter.artifact.graph import Dimension, Graph
    from models.family import Family


def split_params(graph: Graph, trainable: Sequence[str], dense: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Cut ``params`` by ``split_sizes`` into trainable tensors.

    Args:
        graph: has both inputs and, unless all are dense, ``rank``.
        trainable: names of the tensors in order: A factors ``[rank, -1]``, B factors ``[-1, rank]``, dense ones.
        dense: shapes of the dense ones.

    Returns:
        Name to value.
    """
    pieces = graph.multi("Split", (names.PARAMS, names.SPLIT_SIZES), len(trainable), axis=0)
    rest = graph.constant([-1], np.int64)
    out = {}
    for name, piece in zip(trainable, pieces, strict=True):
        if name in dense:
            shape = graph.constant(dense[name], np.int64)
        elif names.is_lora_a(name):
            shape = graph.op("Concat", names.RANK, rest, axis=0)
        else:
            shape = graph.op("Concat", rest, names.RANK, axis=0)
        out[name] = graph.op("Reshape", piece, shape)
    return out


def accumulated(graph: Graph, trainable: Sequence[str], gradients: Mapping[str, str]) -> str:
    """``grad_accum`` plus the flat gradient: those of ``trainable``, in that order."""
    flat = graph.constant([-1], np.int64)
    joined = graph.op("Concat", *(graph.op("Reshape", gradients[name], flat) for name in trainable), axis=0)
    return graph.op("Add", names.GRAD_ACCUM, joined)


def size_of(graph: Graph, value: str, axis: int) -> str:
    """Length of an axis, int64 ``[1]``."""
    return graph.op("Shape", value, start=axis, end=axis + 1)


def unit_sizes(graph: Graph, family: Family, prefix: str) -> dict[str, str]:
    """Numbers of units that a block keeps, by group, read from its first weight that has them."""
    sizes: dict[str, str] = {}
    for param in family.block_params:
        for prune in param.prune:
            if prune.group not in sizes:
                width = size_of(graph, prefix + param.name, prune.axis)
                unit = graph.constant([prune.unit_size], np.int64)
                sizes[prune.group] = width if prune.unit_size == 1 else graph.op("Div", width, unit)
    return sizes


def dimensions(shape: Sequence[int], prunes: Sequence[PruneAxis], scope: str) -> list[Dimension]:
    """Axes of a frozen weight as a graph's input: fixed, or one name for all that shrink together in ``scope``."""
    axes: list[Dimension] = list(shape)
    for prune in prunes:
        times = "" if prune.unit_size == 1 else f"_x{prune.unit_size}"
        axes[prune.axis] = f"{scope}{prune.group}{times}"
    return axes
