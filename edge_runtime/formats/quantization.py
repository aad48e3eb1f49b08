"""Frozen matrices in eight or four bits: their form in a base blob, and the conversion to float32.

*int8*: symmetric, one scale for each row, ``W ~ code * scale`` with codes in [-127, 127].

*nf4*: 4-bit NormalFloat (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, appendix E): blocks of 64 elements, each
divided by its largest absolute value, then the nearest of 16 quantiles of the normal distribution. Two codes a byte,
the first in the low half. Scales are float16 in place of the paper's double quantisation (ours): 4.25 bits an element,
against 4.13.

Blocks lie along the axis that is not pruned: along the rows, or down the columns if columns are pruned. So a plan takes
whole blocks, and pruning is indexing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import NF4_BLOCK_SIZE, TensorSpec

Kind = Literal["int8", "nf4"]
Array = npt.NDArray[np.float32]

SCALES_SUFFIX: Final = ".scales"
"""Suffix of a matrix's name in the base blob for its scales."""

NF4: Final = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The 16 values of a code, ascending."""

_LOW: Final = np.tile(NF4, 16)
_HIGH: Final = np.repeat(NF4, 16)
_PAIRS: Final = np.ascontiguousarray(np.stack([_LOW, _HIGH], axis=1)).view(np.float64).reshape(256)
"""Both values of each byte as one item, so that one look-up writes two neighbours."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A matrix ``[R, C]`` in few bits."""

    kind: Kind
    codes: npt.NDArray[Any]
    """int8: int8 ``[R, C]``. nf4: uint8 ``[R, C / 2]``, or ``[R / 2, C]`` with blocks down the columns."""
    scales: npt.NDArray[Any]
    """int8: float32 ``[R, 1]``. nf4: float16 ``[R, C / 64]``, or ``[R / 64, C]``."""
    axis: int
    """nf4: the axis along which blocks lie; int8: 1."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(R, C)``."""
        shape = list(self.codes.shape)
        if self.kind == "nf4":
            shape[self.axis] *= 2
        return tuple(shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.codes.size * (2 if self.kind == "nf4" else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def take(self, indices: npt.NDArray[np.int64], axis: int) -> Self:
        """Take some rows (axis 0) or columns (axis 1).

        Raises:
            TensorError: blocks lie along this axis.
        """
        if self.kind == "int8":
            scales = np.take(self.scales, indices, axis=0) if axis == 0 else self.scales
        elif axis != self.axis:
            scales = np.take(self.scales, indices, axis=axis)
        else:
            msg = f"a matrix in nf4 with blocks along axis {self.axis} cannot be indexed along it"
            raise TensorError(msg)
        return dataclasses.replace(self, codes=np.take(self.codes, indices, axis=axis), scales=scales)

    def write(self, out: Array) -> None:
        """Write the matrix to a C-contiguous array ``[R, C]``."""
        if self.kind == "int8":
            np.multiply(self.codes, self.scales, out=out)
            return
        rows, columns = self.shape
        scales = self.scales.astype(np.float32)
        if self.axis == 1:
            # mode "raise" would need a buffer; codes are always in range
            np.take(_PAIRS, self.codes, out=out.view(np.float64), mode="clip")
            out.reshape(rows, -1, NF4_BLOCK_SIZE)[...] *= scales[:, :, None]
        else:
            out[0::2] = _LOW[self.codes]
            out[1::2] = _HIGH[self.codes]
            out.reshape(-1, NF4_BLOCK_SIZE, columns)[...] *= scales[:, None, :]

    def float32(self) -> Array:
        """The matrix, float32 ``[R, C]``."""
        out = np.empty(self.shape, np.float32)
        self.write(out)
        return out


def quantize(weight: Array, kind: Kind, axis: int = 1) -> Quantized:
    """A matrix in few bits.

    Args:
        weight: float32 ``[R, C]``, finite.
        kind: int8, or nf4, which needs a multiple of 64 elements along ``axis``.
        axis: axis along which blocks lie (nf4); rounding of int8 does not depend on it.

    Raises:
        TensorError: the weight is not a finite matrix, or nf4 cannot divide it into blocks.
    """
    if weight.ndim != 2 or not np.isfinite(weight).all():
        msg = f"only finite matrices can be quantised, got shape {weight.shape}"
        raise TensorError(msg)
    if kind == "int8":
        largest = np.abs(weight).max(axis=1, keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        return Quantized(kind=kind, codes=np.rint(weight / scales).astype(np.int8), scales=scales, axis=1)
    if weight.shape[axis] % NF4_BLOCK_SIZE:
        msg = f"nf4 needs a multiple of {NF4_BLOCK_SIZE} elements along axis {axis}, got shape {weight.shape}"
        raise TensorError(msg)
    lines = weight if axis == 1 else weight.T
    blocks = lines.reshape(lines.shape[0], -1, NF4_BLOCK_SIZE)
    largest = np.abs(blocks).max(axis=2)
    if largest.max() > np.finfo(np.float16).max:
        msg = "weights beyond float16 cannot be kept in nf4: keep them as int8 or float16"
        raise TensorError(msg)
    scales = largest.astype(np.float16)
    divisors = np.where(scales > 0, scales, 1).astype(np.float32)
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, blocks / divisors[:, :, None]).astype(np.uint8)
    pairs = codes.reshape(lines.shape[0], -1, 2)
    packed = pairs[..., 0] | pairs[..., 1] << 4
    if axis == 0:
        packed, scales = packed.T, scales.T
    return Quantized(kind=kind, codes=np.ascontiguousarray(packed), scales=np.ascontiguousarray(scales), axis=axis)


def stored_tensor(tensors: Mapping[str, npt.NDArray[Any]], spec: TensorSpec) -> npt.NDArray[Any] | Quantized:
    """A frozen weight in its stored form, from the tensors of a base blob; nothing is copied.

    Raises:
        TensorError: the tensor is missing, or has another shape or type.
    """
    if spec.dtype not in {"int8", "nf4"}:
        return _part(tensors, spec.name, spec.shape, spec.dtype)
    kind: Kind = "int8" if spec.dtype == "int8" else "nf4"
    codes, scales, axis = list(spec.shape), [spec.shape[0], 1], 1
    if kind == "nf4":
        axis, scales = spec.block_axis, list(spec.shape)
        codes[axis] //= 2
        scales[axis] //= NF4_BLOCK_SIZE
    return Quantized(
        kind=kind,
        codes=_part(tensors, spec.name, tuple(codes), "int8" if kind == "int8" else "uint8"),
        scales=_part(tensors, spec.name + SCALES_SUFFIX, tuple(scales), "float32" if kind == "int8" else "float16"),
        axis=axis,
    )


def _part(tensors: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    value = tensors.get(name)
    if value is None or value.shape != shape or value.dtype != dtype:
        got = "nothing" if value is None else f"{value.dtype} {value.shape}"
        msg = f"{name!r} should be {dtype} {shape}, got {got}"
        raise TensorError(msg)
    return value
