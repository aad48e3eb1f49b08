"""8-bit activations with a scale for each token, so that an answer does not depend on other texts of the batch.

ONNX's ``DynamicQuantizeLinear``, which onnxruntime's quantiser writes, has one scale for a whole tensor: padding, other
texts of a batch, or later tokens would change an answer. Here each row ``x`` of activations is
``round(127 x / max|x|)``, shifted by 128 into uint8 (vector-wise quantisation: Dettmers et al. 2022, LLM.int8(),
arXiv 2208.07339). Products are exact integers, so rows do not affect each other.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from exporter.errors import CompactParityError

_PREFIX: Final = "rows."
_AXES: Final = f"{_PREFIX}axes"
_STEPS: Final = f"{_PREFIX}steps"
_LEAST: Final = f"{_PREFIX}least"
_ONE: Final = f"{_PREFIX}one"
_SHIFT: Final = f"{_PREFIX}shift"
_CONSTANTS: Final[dict[str, npt.NDArray[Any]]] = {
    _AXES: np.array([-1], np.int64),
    _STEPS: np.array(127.0, np.float32),
    _LEAST: np.array(1e-30, np.float32),  # avoids a division by zero for a row of zeros
    _ONE: np.array(1.0, np.float32),
    _SHIFT: np.array(128, np.uint8),
}


def quantize_by_row(model: onnx.ModelProto) -> None:
    """Give every dynamically quantised activation of a graph a scale for each row, in place.

    Args:
        model: of ``quantize_dynamic``: ``MatMulInteger``, ``Cast``, a ``Mul`` by the product of both scales.

    Raises:
        CompactParityError: the graph has another form.
    """
    graph = model.graph
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    quantizers = [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]
    added: dict[str, list[onnx.NodeProto]] = {}
    late: set[str] = set()
    for node in quantizers:
        quantized, scale, zero_point = node.output
        added[quantized] = _row_quantizer(node.input[0], quantized, scale)
        for product in users[zero_point]:
            product.input[list(product.input).index(zero_point)] = _SHIFT
        for scales in users[scale]:
            late.add(_scale_by_row(scales, scale, users))
    kept: list[onnx.NodeProto] = []
    moved = {node.output[0]: node for node in graph.node if node.output[0] in late}
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            kept += added[node.output[0]]
        elif node.output[0] not in late:
            # the product's Cast must come before this node
            kept += [moved[name] for name in node.input if name in moved]
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    if quantizers:
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items())


def _row_quantizer(values: str, quantized: str, scale: str) -> list[onnx.NodeProto]:
    """``values [..., N]`` to ``scale [..., 1]`` and uint8 ``quantized [..., N]`` around 128."""
    size, largest, divisor, in_steps = (f"{quantized}.{part}" for part in ("size", "largest", "divisor", "in_steps"))
    return [
        helper.make_node("Abs", [values], [size]),
        helper.make_node("ReduceMax", [size, _AXES], [largest], keepdims=1),
        helper.make_node("Max", [largest, _LEAST], [divisor]),
        helper.make_node("Div", [divisor, _STEPS], [scale]),
        helper.make_node("Div", [values, scale], [in_steps]),
        helper.make_node("QuantizeLinear", [in_steps, _ONE, _SHIFT], [quantized]),
    ]


def _scale_by_row(scales: onnx.NodeProto, scale: str, users: dict[str, list[onnx.NodeProto]]) -> str:
    """Turn ``cast * (scale * weight_scale)`` into ``(cast * scale) * weight_scale``; return values computed later now.

    The product of the scales would be as large as the result: a row of scales for each row of activations.
    """
    product: str = scales.output[0]
    rescaled = users[product]
    if scales.op_type != "Mul" or len(rescaled) != 1 or rescaled[0].op_type != "Mul":
        msg = f"onnxruntime's quantiser wrote {scales.op_type} {product!r} where a product of scales belongs: report it"
        raise CompactParityError(msg)
    (weight_scale,) = (name for name in scales.input if name != scale)
    (cast,) = (name for name in rescaled[0].input if name != product)
    scales.input[:] = [cast, scale]
    rescaled[0].input[:] = [product, weight_scale]
    return product
