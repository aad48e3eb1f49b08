from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.session import Graph
from edge_runtime.errors import ExitCode
from edge_runtime.inference import forward
from edge_runtime.inference.errors import InferenceError

onnx = pytest.importorskip("onnx")


@pytest.fixture
def product(tmp_path: Path) -> Graph:
    """The largest element of a product of a column and a row."""
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor("a", onnx.TensorProto.FLOAT, ["n", 1]), tensor("b", onnx.TensorProto.FLOAT, [1, "m"])]
    nodes = [
        onnx.helper.make_node("Mul", ["a", "b"], ["product"]),
        onnx.helper.make_node("ReduceMax", ["product"], ["out"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [tensor("out", onnx.TensorProto.FLOAT, [])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "product.onnx")
    return Graph(tmp_path / "product.onnx", num_threads=1)


def test_arrays_go_in_and_values_come_out(product: Graph) -> None:
    values = {"a": np.array([[2.0], [3.0]], np.float32), "b": np.array([[5.0]], np.float32)}
    assert forward.run(product, ["out"], values)[0].numpy() == 15.0


def test_what_cannot_be_allocated_is_insufficient_memory(product: Graph) -> None:
    """Two small inputs, whose product would be 64 TB."""
    values = {"a": np.ones((4_000_000, 1), np.float32), "b": np.ones((1, 4_000_000), np.float32)}
    with pytest.raises(InsufficientMemoryError, match="out of memory") as caught:
        forward.run(product, ["out"], values)
    assert caught.value.exit_code == ExitCode.INSUFFICIENT_MEMORY


def test_another_fault_says_what_to_do_in_one_line(product: Graph) -> None:
    with pytest.raises(InferenceError, match=r"product\.onnx failed: .*; use shorter or fewer texts") as caught:
        forward.run(product, ["out"], {"a": np.ones((2, 3), np.float32), "b": np.ones((1, 2), np.float32)})
    assert "\n" not in str(caught.value)
