"""The reply of zero-order tuning, mostly under 1 KB: scalars of an assignment, and how many were not finite."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.tensors import decode_tensors, encode_tensors

Array = npt.NDArray[np.float32]

SCALARS: Final = "scalars"
NOT_FINITE: Final = "not_finite"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The reply of a device."""

    scalars: Array
    """Float32 ``[steps, num_outer * num_inner]``, all finite."""
    num_not_finite: int
    """Number of scalars that are 0 because a loss was not finite."""


def encode_reply(scalars: Array, num_not_finite: int) -> bytes:
    """Safetensors bytes of a reply.

    Args:
        scalars: float32 ``[steps, num_outer * num_inner]``.
        num_not_finite: from 0 to the number of scalars.

    Raises:
        TensorError: :func:`decode_reply` would refuse the reply.
    """
    _check(scalars, num_not_finite)
    return encode_tensors({SCALARS: scalars, NOT_FINITE: np.array([num_not_finite], np.float32)})


def decode_reply(blob: bytes, shape: tuple[int, int]) -> Reply:
    """Decode and check a reply from a device.

    Args:
        blob: safetensors bytes.
        shape: required shape, ``(steps, num_outer * num_inner)``.

    Raises:
        TensorError: the reply is malformed, has other tensors or another shape, or has invalid values.
    """
    tensors = decode_tensors(blob)
    if set(tensors) != {SCALARS, NOT_FINITE}:
        msg = f"a reply has tensors {sorted(tensors)[:4]}, expected {SCALARS} and {NOT_FINITE}"
        raise TensorError(msg)
    scalars, counted = tensors[SCALARS], tensors[NOT_FINITE]
    if scalars.shape != shape or counted.shape != (1,):
        msg = f"a reply has {SCALARS} {scalars.shape} and {NOT_FINITE} {counted.shape}, expected {shape} and (1,)"
        raise TensorError(msg)
    value = float(counted[0])
    if not value.is_integer():  # False for infinities and NaN too
        msg = f"a reply counts {value} scalars that were not finite, expected a whole number"
        raise TensorError(msg)
    _check(scalars, int(value))
    return Reply(scalars=scalars, num_not_finite=int(value))


def _check(scalars: Array, num_not_finite: int) -> None:
    if not np.isfinite(scalars).all():
        msg = "a reply has scalars that are not finite"
        raise TensorError(msg)
    if not 0 <= num_not_finite <= scalars.size:
        msg = f"a reply counts {num_not_finite} scalars that were not finite, of {scalars.size}"
        raise TensorError(msg)
