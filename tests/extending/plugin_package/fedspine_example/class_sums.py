"""Settings and reply of ``class_means``, which both its sides know. It imports nothing of the server.

Shape legend: ``C`` classes, ``H`` features.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.head import Head
from edge_runtime.formats.tensors import decode_tensors, encode_tensors

Array = npt.NDArray[np.float32]

METHOD: Final = "class_means"
"""Name of the entry point, and of the method in an assignment."""

Norm = Annotated[float, msgspec.Meta(gt=0, le=1e6)]

ROUNDING: Final = 1e-3
"""Relative, of sums in float32."""


class SumSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that the server sends."""

    largest_norm: Norm
    """Features with a larger Euclidean norm are scaled down to it, so that one example moves a sum no further."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassSums:
    """Sums over the examples of each class."""

    features: Array
    """``[C, H]``."""
    squares: Array
    """Squared norms ``[C]``."""
    counts: Array
    """Examples ``[C]``; float32 holds whole numbers up to 2^24."""

    def encode(self) -> bytes:
        """Safetensors bytes."""
        return encode_tensors(dataclasses.asdict(self))


def decode_sums(blob: bytes, head: Head, largest_norm: float) -> ClassSums:
    """Sums from a blob from outside.

    Raises:
        TensorError: malformed, other tensors, or numbers that no examples give.
    """
    tensors = decode_tensors(blob)
    expected = {
        "features": (head.num_classes, head.num_features),
        **dict.fromkeys(("squares", "counts"), (head.num_classes,)),
    }
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        msg = f"sums have the tensors {str(found)[:200]}, expected {expected}"
        raise TensorError(msg)
    if not all(np.isfinite(value).all() for value in tensors.values()):
        msg = "sums hold values that are not finite"
        raise TensorError(msg)
    sums = ClassSums(features=tensors["features"], squares=tensors["squares"], counts=tensors["counts"])
    norms, counts = np.linalg.norm(sums.features.astype(np.float64), axis=1), sums.counts.astype(np.float64)
    most = 1 + ROUNDING
    rules = {
        "numbers of examples that are not whole": (counts >= 0).all() and (counts == np.rint(counts)).all(),
        "features that are too large": (norms <= most * largest_norm * counts).all(),
        "squares that do not fit the features": (norms**2 <= most * counts * sums.squares).all()
        and (sums.squares <= most * largest_norm**2 * counts).all(),
    }
    for fault, holds in rules.items():
        if not holds:
            msg = f"sums hold {fault}"
            raise TensorError(msg)
    return sums
