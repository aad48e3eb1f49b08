"""ATen operations in ONNX: one small function each, found by name in one table.

The table has the operations of the stages of the known families and their backward passes, after decomposition to core
ATen. A missing operation is refused by name; add a function here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.artifact.operands import Operands

Handler = Callable[..., "str | tuple[str, ...]"]
HANDLERS: Final[dict[str, Handler]] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def handler_for(target: Any) -> Handler:
    """The function that translates an ATen operation.

    Raises:
        ExportError: there is none.
    """
    name = str(target).removeprefix("aten.")
    if name not in HANDLERS:
        msg = f"operation {target} has no ONNX translation; write it without this operation, or add one to operators.py"
        raise ExportError(msg)
    return HANDLERS[name]


# ---- arithmetic ----


def _binary(kind: str) -> Handler:
    def handler(t: Operands, left: Any, right: Any, *, alpha: float = 1) -> str:
        dtype = t.promoted(left, right)
        if alpha != 1:
            right = t.graph.op("Mul", t.operand(right, dtype), t.scalar(alpha, dtype))
            return t.graph.op(kind, t.operand(left, dtype), right)
        return t.graph.op(kind, t.operand(left, dtype), t.operand(right, dtype))

    return handler


for _name, _kind in {
    "add.Tensor": "Add",
    "sub.Tensor": "Sub",
    "mul.Tensor": "Mul",
    "mul.Scalar": "Mul",
    "eq.Tensor": "Equal",
    "eq.Scalar": "Equal",
    "gt.Scalar": "Greater",
    "le.Tensor": "LessOrEqual",
    "le.Scalar": "LessOrEqual",
}.items():
    HANDLERS[_name] = _binary(_kind)


@_handles("pow.Tensor_Scalar")
def _pow(t: Operands, x: Any, exponent: float) -> str:
    """Small whole powers as products, which are several times as fast."""
    if exponent not in {1, 2, 3}:
        return t.graph.op("Pow", t.operand(x, t.dtype), t.scalar(exponent, t.dtype))
    base = t.operand(x, t.dtype)
    out = base
    for _ in range(int(exponent) - 1):
        out = t.graph.op("Mul", out, base)
    return out


@_handles("div.Tensor", "div.Scalar")
def _div(t: Operands, left: Any, right: Any) -> str:
    dtype = t.dtype  # true division: integers become floats
    return t.graph.op("Div", t.operand(left, dtype), t.operand(right, dtype))


@_handles("ne.Scalar")
def _not_equal(t: Operands, left: Any, right: Any) -> str:
    dtype = t.promoted(left, right)
    return t.graph.op("Not", t.graph.op("Equal", t.operand(left, dtype), t.operand(right, dtype)))


@_handles("bitwise_and.Tensor")
def _and(t: Operands, left: Any, right: Any) -> str:
    dtype = t.promoted(left, right)
    kind = "And" if dtype == torch.bool else "BitwiseAnd"
    return t.graph.op(kind, t.operand(left, dtype), t.operand(right, dtype))


def _unary(kind: str) -> Handler:
    return lambda t, x: t.graph.op(kind, x.name)


for _name, _kind in {
    "neg": "Neg",
    "exp": "Exp",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "erf": "Erf",
    "relu": "Relu",
    "cos": "Cos",
    "sin": "Sin",
}.items():
    HANDLERS[f"{_name}.default"] = _unary(_kind)


@_handles("rsqrt.default")
def _rsqrt(t: Operands, x: Any) -> str:
    return t.graph.op("Reciprocal", t.graph.op("Sqrt", x.name))


@_handles("gelu.default")
def _gelu(t: Operands, x: Any, *, approximate: str = "none") -> str:
    return t.graph.op("Gelu", x.name, approximate=approximate)


@_handles("clamp.default")
def _clamp(t: Operands, x: Any, low: Any = None, high: Any = None) -> str:
    out: str = x.name
    if low is not None:
        out = t.graph.op("Max", out, t.scalar(low, t.dtype))
    return out if high is None else t.graph.op("Min", out, t.scalar(high, t.dtype))


@_handles("where.self")
def _where(t: Operands, condition: Any, left: Any, right: Any) -> str:
    return t.graph.op("Where", condition.name, t.operand(left, t.dtype), t.operand(right, t.dtype))


@_handles("_to_copy.default")
def _to_copy(t: Operands, x: Any, **_: object) -> str:
    return t.operand(x, t.dtype)


@_handles("alias.default", "clone.default", "detach.default")
def _identity(t: Operands, x: Any, **_: object) -> str:
    del t
    return str(x.name)


# ---- products ----


@_handles("mm.default")
def _mm(t: Operands, left: Any, right: Any) -> str:
    left, trans_a = t.untransposed(left.name)
    right, trans_b = t.untransposed(right.name)
    return t.graph.op("Gemm", left, right, transA=int(trans_a), transB=int(trans_b))


@_handles("addmm.default")
def _addmm(t: Operands, bias: Any, left: Any, right: Any) -> str:
    left, trans_a = t.untransposed(left.name)
    right, trans_b = t.untransposed(right.name)
    return t.graph.op("Gemm", left, right, bias.name, transA=int(trans_a), transB=int(trans_b))


@_handles("bmm.default")
def _bmm(t: Operands, left: Any, right: Any) -> str:
    return t.graph.op("MatMul", left.name, right.name)


# ---- shapes ----


@_handles("view.default")
def _view(t: Operands, x: Any, shape: Sequence[Any]) -> str:
    del shape  # -1 is resolved in the recorded result
    return t.reshape(x, t.shape)


@_handles("unsqueeze.default", "squeeze.dims")
def _same_elements(t: Operands, x: Any, dim: Any) -> str:
    del dim
    return t.reshape(x, t.shape)


def _reordered(t: Operands, x: Any, axes: Sequence[int]) -> str:
    order = [axis % len(axes) for axis in axes]
    name = x.name
    if (node := t.graph.producer(name)) is not None and node.kind == "Transpose":
        before: Any = dict(node.attributes)["perm"]
        order, name = [before[axis] for axis in order], node.inputs[0]
    if order == sorted(order):
        return str(name)
    return t.graph.op("Transpose", name, perm=tuple(order))


@_handles("permute.default")
def _permute(t: Operands, x: Any, axes: Sequence[int]) -> str:
    return _reordered(t, x, axes)


@_handles("t.default")
def _t(t: Operands, x: Any) -> str:
    return _reordered(t, x, range(len(x.shape))[::-1])


@_handles("transpose.int")
def _transpose(t: Operands, x: Any, left: int, right: int) -> str:
    axes = list(range(len(x.shape)))
    axes[left], axes[right] = axes[right], axes[left]
    return _reordered(t, x, axes)


@_handles("expand.default")
def _expand(t: Operands, x: Any, shape: Sequence[Any]) -> str:
    del shape
    return str(x.name) if t.same_shape(x.shape, t.shape) else t.graph.op("Expand", x.name, t.sizes(t.shape))


@_handles("cat.default")
def _cat(t: Operands, parts: Sequence[Any], dim: int = 0) -> str:
    return t.graph.op("Concat", *(t.operand(part, t.dtype) for part in parts), axis=dim)


@_handles("slice.Tensor")
def _slice(t: Operands, x: Any, dim: int = 0, start: Any = 0, end: Any = None, step: int = 1) -> str:
    if t.same_shape(x.shape, t.shape):
        return str(x.name)
    stop = t.sizes([2**63 - 1 if end is None else end])
    return t.graph.op("Slice", x.name, t.sizes([start or 0]), stop, t.sizes([dim]), t.sizes([step]))


@_handles("slice_scatter.default")
def _slice_scatter(t: Operands, x: Any, part: Any, dim: int = 0, start: Any = 0, end: Any = None, step: int = 1) -> str:
    """``x`` with ``part`` in place of its beginning, as the gradient of such a slice has it."""
    if start or step != 1 or end is None:
        msg = "slice_scatter has a translation for the beginning of an axis alone"
        raise ExportError(msg)
    rest = t.graph.op("Slice", x.name, t.sizes([end]), t.sizes([2**63 - 1]), t.sizes([dim]))
    return t.graph.op("Concat", part.name, rest, axis=dim)


@_handles("select.int")
def _select(t: Operands, x: Any, dim: int, index: Any) -> str:
    return t.graph.op("Gather", x.name, t.graph.constant(index, np.int64), axis=dim)


@_handles("split_with_sizes.default")
def _split(t: Operands, x: Any, sizes: Sequence[int], dim: int = 0) -> tuple[str, ...]:
    return t.graph.multi("Split", (x.name, t.sizes(sizes)), len(sizes), axis=dim)


# ---- reductions and look-ups ----


def _reduction(kind: str) -> Handler:
    def handler(t: Operands, x: Any, dim: Sequence[int] = (), keepdim: bool = False, **_: object) -> str:  # noqa: FBT001, FBT002 - ATen's signature
        axes = [dim] if isinstance(dim, int) else list(dim or range(len(x.shape)))
        value = t.operand(x, t.dtype)
        return t.graph.op(kind, value, t.sizes(axes), keepdims=int(keepdim)) if axes else value

    return handler


for _name, _kind in {
    "sum.dim_IntList": "ReduceSum",
    "mean.dim": "ReduceMean",
}.items():
    HANDLERS[_name] = _reduction(_kind)


@_handles("_softmax.default")
def _softmax(t: Operands, x: Any, dim: int, half: bool) -> str:  # noqa: FBT001 - ATen's signature
    del half
    return t.graph.op("Softmax", x.name, axis=dim)


@_handles("_log_softmax.default")
def _log_softmax(t: Operands, x: Any, dim: int, half: bool) -> str:  # noqa: FBT001 - ATen's signature
    del half
    return t.graph.op("LogSoftmax", x.name, axis=dim)


@_handles("argmax.default")
def _argmax(t: Operands, x: Any, dim: int, keepdim: bool = False) -> str:  # noqa: FBT001, FBT002 - ATen's signature
    return t.graph.op("ArgMax", x.name, axis=dim, keepdims=int(keepdim))


@_handles("native_layer_norm.default")
def _layer_norm(t: Operands, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[str, ...]:
    inputs = (x.name, weight.name, bias.name)
    return t.graph.multi("LayerNormalization", inputs, 3, axis=-len(shape), epsilon=eps)


@_handles("embedding.default")
def _embedding(t: Operands, weight: Any, indices: Any, *_: object) -> str:
    return t.graph.op("Gather", weight.name, indices.name, axis=0)


@_handles("gather.default")
def _gather(t: Operands, x: Any, dim: int, index: Any) -> str:
    return t.graph.op("GatherElements", x.name, index.name, axis=dim)


@_handles("scatter_add.default")
def _scatter_add(t: Operands, x: Any, dim: int, index: Any, source: Any) -> str:
    return t.graph.op("ScatterElements", x.name, index.name, source.name, axis=dim, reduction="add")


# ---- backward ----
# Elementwise passes over activations cost a quarter of a step: these are written in as few as there are operators for.


@_handles("gelu_backward.default")
def _gelu_backward(t: Operands, gradient: Any, x: Any, *, approximate: str = "none") -> str:
    """``g (cdf(x) + x pdf(x))``, with ``u = x / sqrt(2)`` and ``x pdf(x) = u exp(-u^2) / sqrt(pi)``.

    HardSigmoid is ``(y + 1) / 2`` in one pass for y in [-1, 1].
    """
    op, number = t.graph.op, functools.partial(t.graph.constant, dtype=np.float32)
    if approximate == "tanh":
        return _gelu_tanh_backward(t, gradient.name, x.name)
    u = op("Mul", x.name, number(math.sqrt(0.5)))
    cdf = op("HardSigmoid", op("Erf", u), alpha=0.5, beta=0.5)
    bell = op("Exp", op("Sub", number(-0.5 * math.log(math.pi)), op("Mul", u, u)))
    return op("Mul", gradient.name, op("Add", cdf, op("Mul", u, bell)))


def _gelu_tanh_backward(t: Operands, gradient: str, x: str) -> str:
    """``g (p + x 2 p (1 - p) z')`` with ``z = sqrt(2 / pi) (x + 0.044715 x^3)`` and ``p = (1 + tanh(z)) / 2``."""
    op, number = t.graph.op, functools.partial(t.graph.constant, dtype=np.float32)
    slope, cubic = math.sqrt(2 / math.pi), 0.044715
    square = op("Mul", x, x)
    z = op("Mul", x, op("Add", op("Mul", square, number(slope * cubic)), number(slope)))
    p = op("HardSigmoid", op("Tanh", z), alpha=0.5, beta=0.5)
    spread = op("Mul", op("Mul", p, op("Sub", number(1), p)), x)
    derivative = op("Add", op("Mul", square, number(6 * slope * cubic)), number(2 * slope))
    return op("Mul", gradient, op("Add", p, op("Mul", spread, derivative)))


@_handles("native_layer_norm_backward.default")
def _layer_norm_backward(  # noqa: PLR0913, PLR0917 - ATen's signature
    t: Operands,
    gradient: Any,
    x: Any,
    shape: Sequence[int],
    mean: Any,
    rstd: Any,
    weight: Any,
    bias: Any,
    output_mask: Sequence[bool],
) -> tuple[str, str, str]:
    """With ``y = g w`` and ``c = x - mean``: ``rstd (y - mean(y) - c rstd^2 mean(y c))``, for ``x`` alone."""
    del bias
    if list(output_mask) != [True, False, False] or len(shape) != 1:
        msg = "the gradient of a layer norm has a translation for its input alone, over one axis"
        raise ExportError(msg)
    op, axis = t.graph.op, t.graph.constant([-1], np.int64)
    y, c = op("Mul", gradient.name, weight.name), op("Sub", x.name, mean.name)
    slope = op("Mul", op("Mul", rstd.name, rstd.name), op("ReduceMean", op("Mul", y, c), axis, keepdims=1))
    centred = op("Sub", op("Sub", y, op("Mul", c, slope)), op("ReduceMean", y, axis, keepdims=1))
    return op("Mul", centred, rstd.name), "", ""


# ---- new tensors ----


@_handles("full.default", "full_like.default")
def _full(t: Operands, *args: Any, **_: object) -> str:
    value = t.scalar(args[-1], t.dtype)
    return value if not t.shape else t.graph.op("Expand", value, t.sizes(t.shape))


@_handles("scalar_tensor.default")
def _scalar_tensor(t: Operands, value: float, **_: object) -> str:
    return t.scalar(value, t.dtype)


@_handles("arange.start_step")
def _arange(t: Operands, start: Any, stop: Any, step: Any = 1, **_: object) -> str:
    if t.dtype != torch.int64:
        msg = f"a range of {t.dtype} has no ONNX translation; make an int64 range and cast it"
        raise ExportError(msg)
    start, stop, step = (t.scalar(bound, torch.int64) for bound in (start, stop, step))
    return t.graph.op("Range", start, stop, step)
