"""A traced function becomes nodes of a graph; sizes are worked out from named ones.

Whatever the trace says about where a size was read is ignored: a size is an expression over the named sizes, and each
of these is a value that the caller supplies. So forward and backward, which read sizes from different tensors, agree.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import sympy
import torch

from exporter.errors import ExportError
from exporter.operators import handler_for

if TYPE_CHECKING:
    from exporter.graph import Graph
    from exporter.trace import Traced

_NUMPY: Final[dict[torch.dtype, type[np.generic]]] = {
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


class Translation:
    """One traced function going into a graph; what the functions in :mod:`exporter.operators` see.

    Attributes:
        graph: where nodes go.
        dtype: type of the result of the operation being translated.
        shape: its shape.
    """

    def __init__(self, graph: Graph, traced: Traced, sizes: Mapping[str, str]) -> None:
        self.graph = graph
        self.dtype = torch.float32
        self.shape: tuple[Any, ...] = ()
        self._traced = traced
        self._sizes = sizes

    def run(self, inputs: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
        """Add the nodes that the wanted outputs need.

        Args:
            inputs: input name of the traced function to value in the graph; those not needed may be left out.
            wanted: names of outputs.

        Returns:
            Output name to value.
        """
        nodes = list(self._traced.module.graph.nodes)
        results: Any = nodes[-1].args[0]
        chosen = {name: results[self._traced.outputs.index(name)] for name in wanted}
        needed = _ancestors(chosen.values())
        values: dict[torch.fx.Node, Any] = {}
        placeholders = iter(self._traced.inputs)
        for node in nodes[:-1]:
            if node.op == "placeholder":
                name = next(placeholders)
                if node in needed:
                    values[node] = self._value(inputs[name], node.meta["val"])
            elif node in needed and isinstance(node.meta.get("val"), torch.Tensor | tuple | list | None):
                values[node] = self._translate(node, values)
        return {name: values[node].name for name, node in chosen.items()}

    def _translate(self, node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            constant = getattr(self._traced.module, str(node.target))
            return self._value(self.graph.constant(constant.numpy(), _NUMPY[constant.dtype]), constant)

        def resolve(argument: torch.fx.Node) -> Any:
            return values[argument] if argument in values else argument.meta["val"]

        args: Any = torch.fx.map_arg(node.args, resolve)
        kwargs: Any = torch.fx.map_arg(node.kwargs, resolve)
        if node.target is operator.getitem:
            return args[0][args[1]]
        fake = node.meta["val"]
        first = fake[0] if isinstance(fake, tuple | list) else fake
        self.dtype, self.shape = first.dtype, tuple(first.shape)
        result = handler_for(node.target)(self, *args, **kwargs)
        if isinstance(result, tuple):
            return tuple(self._value(name, part) for name, part in zip(result, fake, strict=True))
        return self._value(result, fake)

    @staticmethod
    def _value(name: str, fake: torch.Tensor) -> Value:
        return Value(name, fake.dtype, tuple(fake.shape))

    # ---- what operators use ----

    def promoted(self, left: Any, right: Any) -> torch.dtype:
        """Type in which an operation on two tensors, or on a tensor and a number, is done."""
        if isinstance(left, Value) and isinstance(right, Value):
            if bool(left.shape) == bool(right.shape):
                return torch.promote_types(left.dtype, right.dtype)
            wide, narrow = (left, right) if left.shape else (right, left)  # a 0-dimensional tensor counts less
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
        return self.graph.constant(number, _NUMPY[dtype])

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
            # The most complicated one is inferred, which needs no arithmetic in the graph.
            target[max(free, key=lambda axis: sympy.count_ops(shape[axis].node.expr))] = -1
        return self.graph.op("Reshape", x.name, self.sizes(target))

    @staticmethod
    def same_shape(left: Sequence[Any], right: Sequence[Any]) -> bool:
        """Whether two shapes are the same for all values of the free sizes."""
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
            return self._sizes[self._traced.symbols[str(expression)]]
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


def _ancestors(nodes: Any) -> set[torch.fx.Node]:
    found: set[torch.fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
