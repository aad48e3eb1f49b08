"""Graphs under construction: equal nodes are made once, so that whatever is computed twice is computed once.

Merging happens while nodes are added (value numbering): a node of the same kind with the same inputs and attributes
returns the outputs of the first. A block's backward, which contains its forward, merges with the one that came before.
Serialised nodes stand in the order in which they were added, which is a topological one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from exporter.errors import ExportError

OPSET: Final = 20
"""ONNX operator set; onnxruntime 1.17 and later run it."""
IR_VERSION: Final = 10
"""ONNX file version that onnxruntime 1.19 and later read."""

Attribute = int | float | str | tuple[int, ...]
Dimension = int | str | None
Output = tuple[str, npt.DTypeLike, Sequence[Dimension]]
"""Value, type and shape."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One operation; values are names."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...]
    scope: str


class Graph:
    """A graph that grows; see the module's text."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, npt.NDArray[np.generic]] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self._known: dict[tuple[str, tuple[str, ...], tuple[tuple[str, Attribute], ...]], tuple[str, ...]] = {}
        self._known_constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._producers: dict[str, Node] = {}
        self._scope = ""

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[Dimension]) -> str:
        """Declare an input; returns its name."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A constant; equal ones (value, shape and type) are one."""
        array = np.array(value, dtype=dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known_constants:
            name = f"constant{len(self.constants)}"
            self._known_constants[key] = name
            self.constants[name] = array
        return self._known_constants[key]

    def op(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node with one output, or find the one that computes the same; returns the output's name."""
        return self.multi(kind, inputs, 1, **attributes)[0]

    def multi(self, kind: str, inputs: Sequence[str], num_outputs: int, **attributes: Attribute) -> tuple[str, ...]:
        """Like :meth:`op`, for a node with several outputs."""
        key = (kind, tuple(inputs), tuple(sorted(attributes.items())))
        if key not in self._known:
            stem = f"{self._scope}{kind}_{len(self.nodes)}"
            outputs = (stem,) if num_outputs == 1 else tuple(f"{stem}.{i}" for i in range(num_outputs))
            node = Node(kind, key[1], outputs, key[2], self._scope)
            self.nodes.append(node)
            self._producers |= dict.fromkeys(outputs, node)
            self._known[key] = outputs
        return self._known[key]

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for an input or a constant."""
        return self._producers.get(value)

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Begin the names of the nodes that are added inside with ``name`` and a slash."""
        before, self._scope = self._scope, f"{name}/"
        try:
            yield
        finally:
            self._scope = before

    def needed(self, values: Sequence[str], given: Collection[str] = ()) -> list[Node]:
        """The nodes that ``values`` depend on, in order; nodes that only lead to ``given`` values are left out."""
        wanted, known = set(values).difference(given), set(given)
        kept = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                wanted.update(value for value in node.inputs if value not in known)
                kept.append(node)
        return kept[::-1]

    def model(self, name: str, outputs: Mapping[str, Output]) -> onnx.ModelProto:
        """Serialisable model of the nodes that the outputs need; all declared inputs stay.

        Args:
            name: name of the graph.
            outputs: output name to (value, type, shape).

        Raises:
            ExportError: two outputs are one value, or an output is an input.
        """
        rename = {value: output for output, (value, _, _) in outputs.items()}
        if len(rename) != len(outputs) or set(rename) & (set(self.inputs) | set(self.constants)):
            msg = f"graph {name!r}: every output must be computed, and by a node of its own; got {sorted(rename)}"
            raise ExportError(msg)
        nodes = self.needed(list(rename))
        used = {value for node in nodes for value in node.inputs}
        graph = helper.make_graph(
            [_node_proto(node, rename) for node in nodes],
            name,
            list(self.inputs.values()),
            [
                helper.make_tensor_value_info(output, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
                for output, (_, dtype, shape) in outputs.items()
            ],
            [numpy_helper.from_array(array, key) for key, array in self.constants.items() if key in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fedspine")
        model.ir_version = IR_VERSION
        return model


def _node_proto(node: Node, rename: Mapping[str, str]) -> onnx.NodeProto:
    attributes: dict[str, Any] = dict(node.attributes)
    return helper.make_node(
        node.kind,
        [rename.get(value, value) for value in node.inputs],
        [rename.get(value, value) for value in node.outputs],
        name=node.outputs[0],
        **attributes,
    )
