"""The blobs of the probe: a linear head, or the sums from which a ridge regression is solved.

Sums are integers: features are rounded to multiples of ``2**-FRACTION_BITS``. So sums are exact, and do not depend on
the order of the examples or their distribution over devices.

Shape legend: ``H`` features, ``C`` classes.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import Tensors
from edge_runtime.formats.head import Head
from edge_runtime.formats.tensors import WireDtype, decode_integers, decode_tensors, encode_integers, encode_tensors

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

FRACTION_BITS: Final = 20
"""Fraction bits of a feature as an integer."""
ONE: Final = 2**FRACTION_BITS
"""Feature of the bias: 1."""
MAX_SUM: Final = 2**62
"""Largest sum on the diagonal. By Cauchy and Schwarz no other entry is larger, so that int64 never overflows."""

GRAM: Final = "probe.gram"
CROSS: Final = "probe.cross"
COUNT: Final = "probe.count"


def encode_head(head: Head, tensors: Tensors, dtype: WireDtype = "float32") -> bytes:
    """Safetensors bytes of a head.

    Raises:
        TensorError: the tensors are not the head's, or a value does not fit ``dtype``.
    """
    head.check(tensors)
    return encode_tensors(tensors, dtype)


def decode_head(blob: bytes, head: Head, *, with_others: bool = False) -> dict[str, Array]:
    """Decode a head from a blob from outside.

    Args:
        blob: safetensors bytes.
        head: names and shapes of the head.
        with_others: whether the blob may hold other tensors (an adapter), which are ignored.

    Returns:
        Float32 tensors by name.

    Raises:
        TensorError: the blob is malformed, or its tensors are not the head's.
    """
    tensors = decode_tensors(blob)
    if with_others:
        tensors = {name: value for name, value in tensors.items() if name in (head.weight, head.bias)}
    head.check(tensors)
    return tensors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Sums over examples, with the bias's feature in the last column; ``+`` adds the sums of several devices."""

    gram: Int64
    """Sum of p p^T, ``[H + 1, H + 1]``, in units of ``2**(-2 * FRACTION_BITS)``."""
    cross: Int64
    """Sum of y p^T with one-hot y, ``[C, H + 1]``, in units of ``2**-FRACTION_BITS``."""
    count: Int64
    """Examples of each class, ``[C]``."""

    def __add__(self, other: Statistics) -> Statistics:
        """Sums over both.

        Raises:
            TensorError: the sizes differ, or the sums are too large for an int64.
        """
        if self.gram.shape != other.gram.shape or self.cross.shape != other.cross.shape:
            msg = f"sums of {self.cross.shape} and {other.cross.shape} cannot be added: they are of different heads"
            raise TensorError(msg)
        _check_sums(self.gram.diagonal(), other.gram.diagonal())
        return Statistics(gram=self.gram + other.gram, cross=self.cross + other.cross, count=self.count + other.count)

    @property
    def num_examples(self) -> int:
        """Number of examples in the sums."""
        return int(self.count.sum())

    def as_float(self) -> tuple[Float64, Float64]:
        """Gram ``[H + 1, H + 1]`` and cross ``[C, H + 1]`` in units of features, float64."""
        return np.ldexp(self.gram.astype(np.float64), -2 * FRACTION_BITS), np.ldexp(
            self.cross.astype(np.float64), -FRACTION_BITS
        )


def sum_features(features: Array, labels: Int64, num_classes: int) -> Statistics:
    """Sums over some examples.

    Args:
        features: ``[N, H]``, finite.
        labels: classes ``[N]``.
        num_classes: C.

    Raises:
        TensorError: the sums are too large for an int64.
    """
    num_examples, num_features = features.shape
    largest = float(np.abs(features).max(initial=1.0))
    squares = (largest * ONE) ** 2
    if not squares * max(1, num_examples) < MAX_SUM:
        msg = f"features up to {largest:g} of {num_examples} examples are too large to be summed exactly"
        raise TensorError(msg)
    step = max(1, int(2**53 // squares))  # a float64 holds the sum of so many rows' products exactly
    gram = np.zeros((num_features + 1, num_features + 1), np.int64)
    cross = np.zeros((num_classes, num_features + 1), np.int64)
    for begin in range(0, num_examples, step):
        rows = np.rint(np.ldexp(features[begin : begin + step].astype(np.float64), FRACTION_BITS))
        rows = np.concatenate([rows, np.full((len(rows), 1), float(ONE))], axis=1)
        gram += (rows.T @ rows).astype(np.int64)
        one_hot = np.eye(num_classes)[labels[begin : begin + step]]
        cross += (one_hot.T @ rows).astype(np.int64)
    return Statistics(gram=gram, cross=cross, count=np.bincount(labels, minlength=num_classes).astype(np.int64))


def encode_statistics(statistics: Statistics) -> bytes:
    """Safetensors bytes, int64."""
    return encode_integers({GRAM: statistics.gram, CROSS: statistics.cross, COUNT: statistics.count})


def decode_statistics(blob: bytes, head: Head) -> Statistics:
    """Decode sums from a blob from outside.

    Args:
        blob: bytes of :func:`encode_statistics`.
        head: the head to solve.

    Raises:
        TensorError: the blob is malformed, has other tensors or shapes, or no examples could have these sums.
    """
    tensors = decode_integers(blob)
    size = head.num_features + 1
    expected = {GRAM: (size, size), CROSS: (head.num_classes, size), COUNT: (head.num_classes,)}
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        msg = f"sums have the tensors {str(found)[:200]}, expected {expected}"
        raise TensorError(msg)
    sums = Statistics(gram=tensors[GRAM], cross=tensors[CROSS], count=tensors[COUNT])
    _check_consistent(sums)
    return sums


def _check_consistent(sums: Statistics) -> None:
    """Refuse sums that no set of examples has."""
    count, diagonal = sums.count, sums.gram.diagonal()
    _check_sums(diagonal, np.zeros_like(diagonal))
    is_count = (count >= 0).all() and sum(map(int, count)) == int(sums.gram[-1, -1]) >> (2 * FRACTION_BITS)
    is_whole = is_count and int(sums.gram[-1, -1]) % ONE**2 == 0
    rules = {
        "numbers of examples that do not add up": is_whole and np.array_equal(sums.cross[:, -1], count * ONE),
        "a matrix that is not symmetric": np.array_equal(sums.gram, sums.gram.T),
        "products that are larger than their squares": bool((np.abs(sums.gram) <= diagonal.max()).all()),
        "classes that do not add up to all": is_whole
        and np.array_equal(sums.cross.astype(object).sum(axis=0) * ONE, sums.gram[-1].astype(object)),
    }
    for fault, holds in rules.items():
        if not holds:
            msg = f"sums hold {fault}"
            raise TensorError(msg)


def _check_sums(first: Int64, second: Int64) -> None:
    """Refuse diagonals that are negative, or whose sum overflows an int64."""
    total = first.astype(object) + second.astype(object)
    if (first < 0).any() or (second < 0).any() or (total > MAX_SUM).any():
        msg = f"sums of squares are outside [0, {MAX_SUM}]"
        raise TensorError(msg)
