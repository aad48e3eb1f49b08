"""A traced function becomes nodes of a graph; sizes are worked out from named ones.

Whatever the trace says about where a size was read is ignored: a size is an expression over the named sizes, and each
of these is a value that the caller supplies. So forward and backward, which read sizes from different tensors, agree.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporter.artifact.graph import Graph
from exporter.artifact.operands import NUMPY_TYPES, Operands, Value
from exporter.artifact.operators import handler_for
from exporter.artifact.stage_graph import StageGraph

if TYPE_CHECKING:
    from exporter.artifact.trace import Traced


def translate(traced: Traced) -> StageGraph:
    """The nodes of a traced function.

    Raises:
        ExportError: an operation or a size has no translation.
    """
    graph = Graph()
    sizes = {name: graph.input(f"size of {name}", np.int64, (1,)) for name in traced.symbols.values()}
    outputs = _Translation(graph, traced, {symbol: sizes[name] for symbol, name in traced.symbols.items()}).run()
    return StageGraph(graph, outputs, sizes)


class _Translation(Operands):
    """One traced function going into a graph."""

    def __init__(self, graph: Graph, traced: Traced, sizes: Mapping[str, str]) -> None:
        super().__init__(graph, sizes)
        self._traced = traced

    def run(self) -> dict[str, str]:
        """Add all nodes; returns output name to value."""
        *nodes, last = self._traced.module.graph.nodes
        values: dict[torch.fx.Node, Any] = {}
        placeholders = iter(self._traced.inputs)
        for node in nodes:
            fake = node.meta.get("val")
            if node.op == "placeholder":
                name = self.graph.input(next(placeholders), NUMPY_TYPES[fake.dtype], [None] * fake.dim())
                values[node] = self._value(name, fake)
            elif not isinstance(fake, torch.SymInt):
                values[node] = self._translate(node, values)
        results: Any = last.args[0]
        return {name: values[node].name for name, node in zip(self._traced.outputs, results, strict=True)}

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
            parts = zip(result, fake, strict=True)
            return tuple(None if part is None else self._value(name, part) for name, part in parts)
        return self._value(result, fake)

    @staticmethod
    def _value(name: str, fake: torch.Tensor) -> Value:
        return Value(name, fake.dtype, tuple(fake.shape))
