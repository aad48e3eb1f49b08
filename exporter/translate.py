"""A traced function becomes nodes of a graph; sizes are worked out from named ones.

Whatever the trace says about where a size was read is ignored: a size is an expression over the named sizes, and each
of these is a value that the caller supplies. So forward and backward, which read sizes from different tensors, agree.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from exporter.operands import NUMPY_TYPES, Operands, Value
from exporter.operators import handler_for

if TYPE_CHECKING:
    from exporter.graph import Graph
    from exporter.trace import Traced


class Translation(Operands):
    """One traced function going into a graph."""

    def __init__(self, graph: Graph, traced: Traced, sizes: Mapping[str, str]) -> None:
        super().__init__(graph, {symbol: sizes[size] for symbol, size in traced.symbols.items() if size in sizes})
        self._traced = traced

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
            return self._value(self.graph.constant(constant.numpy(), NUMPY_TYPES[constant.dtype]), constant)

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


def _ancestors(nodes: Any) -> set[torch.fx.Node]:
    found: set[torch.fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
