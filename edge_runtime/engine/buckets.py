"""Sequence bucketing: a batch of examples of different lengths is run in parts, each padded to its own longest.

The gradient does not change: the loss of every part is divided by the number of targets of the whole batch, so the
gradients of the parts add up to the gradient of the batch, except for rounding. Bucketing saves arithmetic on padding,
and the largest part needs less memory than the batch.

Shape legend: ``B`` examples of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from edge_runtime.engine.dataset import Batch, Int64

MIN_TOKENS: Final = 256
"""Smallest part, tokens with padding: the products of smaller parts are slow (measured)."""
MIN_SAVING: Final = 0.15
"""Least share of the tokens of a batch (or part) that a cut in two must save."""


def buckets(batch: Batch) -> list[Batch]:
    """Cut a batch into parts of similar lengths, shortest first; return it whole if a cut saves too little.

    Every example is in one part. Each part is padded to its longest example.
    """
    lengths = batch.attention_mask.sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    sizes = _sizes(lengths[order])
    if len(sizes) == 1:
        return [batch]
    return [_part(batch, rows) for rows in np.split(order, np.cumsum(sizes)[:-1])]


def _sizes(lengths: Int64) -> list[int]:
    """Number of examples of each part, for ascending ``lengths [B]``, by repeated best cuts in two."""
    total, longest = lengths.size, lengths[-1]
    firsts = np.arange(1, total)
    short, rest = firsts * lengths[:-1], (total - firsts) * longest
    cost = np.where(np.minimum(short, rest) >= MIN_TOKENS, short + rest, np.iinfo(np.int64).max)
    if total == 1 or cost.min() > (1 - MIN_SAVING) * total * longest:
        return [total]
    cut = int(cost.argmin()) + 1
    return [*_sizes(lengths[:cut]), *_sizes(lengths[cut:])]


def _part(batch: Batch, rows: Int64) -> Batch:
    mask = batch.attention_mask[rows]
    length = int(mask.sum(axis=1).max())
    return dataclasses.replace(
        batch,
        input_ids=np.ascontiguousarray(batch.input_ids[rows, :length]),
        attention_mask=np.ascontiguousarray(mask[:, :length]),
        labels=batch.labels[rows] if batch.labels.ndim == 1 else np.ascontiguousarray(batch.labels[rows, :length]),
        below=None if batch.below is None else np.ascontiguousarray(batch.below[rows, :length]),
    )
