"""Operands of an operation: values with types and shapes, numbers, and sizes computed from named ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sympy
import torch

from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.artifact.graph import Graph

NUMPY_TYPES: Final[dict[torch.dtype, type[np.generic]]] = {
    torch.float32: np.float32,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the graph that is made."""

    name: str
    dtype: torch.dtype
    shape: tuple[Any, ...]
    """Integers, and SymInts for sizes that are free."""


class Operands:
    """The operands of one operation after the other, as the functions in :mod:`exporter.artifact.operators` see them.

    Attributes:
        graph: where nodes go.
        dtype: type of the result of the operation being translated.
        shape: its shape.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, str]) -> None:
        """Start with a graph, and the values that hold its sizes, by the symbol that stands for each."""
        self.graph = graph
        self.dtype = torch.float32
        self.shape: tuple[Any, ...] = ()
        self._sizes = sizes

    def promoted(self, left: Any, right: Any) -> torch.dtype:
        """Type in which an operation on two tensors, or on a tensor and a number, is done."""
        if isinstance(left, Value) and isinstance(right, Value):
            if bool(left.shape) == bool(right.shape):
                return torch.promote_types(left.dtype, right.dtype)
            # PyTorch gives a 0-dimensional tensor less weight
            wide, narrow = (left, right) if left.shape else (right, left)
            return torch.result_type(torch.empty(1, dtype=wide.dtype), torch.empty((), dtype=narrow.dtype))
        tensor, number = (left, right) if isinstance(left, Value) else (right, left)
        return torch.result_type(torch.empty(1, dtype=tensor.dtype), number)

    def operand(self, x: Any, dtype: torch.dtype) -> str:
        """Name of ``x`` as ``dtype``."""
        if not isinstance(x, Value):
            return self.scalar(x, dtype)
        if x.dtype == dtype:
            return x.name
        kinds = {torch.float32: 1, torch.int64: 7, torch.bool: 9}  # TensorProto.DataType
        return self.graph.op("Cast", x.name, to=kinds[dtype])

    def scalar(self, number: Any, dtype: torch.dtype) -> str:
        """A 0-dimensional value."""
        if isinstance(number, torch.SymInt):
            size = self.graph.op("Squeeze", self.sizes([number]), self.sizes([0]))
            return self.operand(Value(size, torch.int64, ()), dtype)
        return self.graph.constant(number, NUMPY_TYPES[dtype])

    def untransposed(self, name: str) -> tuple[str, bool]:
        """A matrix to multiply with, as itself or as the matrix that it is the transpose of."""
        node = self.graph.producer(name)
        if node is not None and node.kind == "Transpose" and dict(node.attributes)["perm"] == (1, 0):
            return node.inputs[0], True
        return name, False

    def reshape(self, x: Value, shape: Sequence[Any]) -> str:
        """``x`` with another shape; at most one free size is left for the runtime to work out."""
        if self.same_shape(x.shape, shape):
            return x.name
        free = [axis for axis, size in enumerate(shape) if isinstance(size, torch.SymInt)]
        target = list(shape)
        if free:
            # The most complicated size is inferred (-1), so the graph needs no arithmetic for it.
            target[max(free, key=lambda axis: sympy.count_ops(shape[axis].node.expr))] = -1
        return self.graph.op("Reshape", x.name, self.sizes(target))

    @staticmethod
    def same_shape(left: Sequence[Any], right: Sequence[Any]) -> bool:
        """Return whether two shapes are the same for all values of the free sizes."""
        return [_expression(size) for size in left] == [_expression(size) for size in right]

    def sizes(self, shape: Sequence[Any]) -> str:
        """An int64 vector of sizes."""
        parts: list[str] = []
        fixed: list[int] = []
        for size in shape:
            expression = _expression(size)
            if expression.is_Integer:
                fixed.append(int(expression))
                continue
            if fixed:
                parts.append(self.graph.constant(fixed, np.int64))
                fixed = []
            parts.append(self._size(expression))
        if fixed or not parts:
            parts.append(self.graph.constant(fixed, np.int64))
        return parts[0] if len(parts) == 1 else self.graph.op("Concat", *parts, axis=0)

    def _size(self, expression: Any) -> str:
        """An int64 vector of one element."""
        if expression.is_Integer:
            return self.graph.constant([int(expression)], np.int64)
        if expression.is_Symbol:
            return self._sizes[str(expression)]
        kind = "Mul" if expression.is_Mul else "Add" if expression.is_Add else None
        if kind is None:
            msg = f"a size of the form {expression} has no ONNX translation"
            raise ExportError(msg)
        terms = [self._size(term) for term in sorted(expression.args, key=str)]
        out = terms[0]
        for term in terms[1:]:
            out = self.graph.op(kind, out, term)
        return out


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))
