"""The door to onnxruntime: memory is shared, errors are ours."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_runtime.engine.errors import GraphError, InsufficientMemoryError
from edge_runtime.engine.session import Binding, Graph, Interrupt
from edge_runtime.errors import ExitCode


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """``out = a + b`` over vectors."""
    return Graph(save(tmp_path, "Add", ["n"]), num_threads=1)


def save(directory: Path, operator: str, out_shape: list[str]) -> Path:
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor(name, onnx.TensorProto.FLOAT, ["n"]) for name in "ab"]
    outputs = [tensor("out", onnx.TensorProto.FLOAT, out_shape)]
    node = onnx.helper.make_node(operator, ["a", "b"], ["out"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    path = directory / f"{operator}.onnx"
    onnx.save(model, path)
    return path


def test_arrays_are_read_and_written_in_place(graph: Graph) -> None:
    a, b, out = (np.full(3, value, np.float32) for value in (1, 2, 0))
    binding = Binding(graph)
    binding.bind("a", a)
    binding.bind("b", b)
    binding.bind_output("out", out)
    binding.run()
    assert out.tolist() == [3, 3, 3]
    a[:] = 10
    binding.run()
    assert out.tolist() == [12, 12, 12]


def test_read_only_memory_can_be_bound(graph: Graph) -> None:
    a = np.frombuffer(np.ones(2, np.float32).tobytes(), np.float32)
    out = np.zeros(2, np.float32)
    binding = Binding(graph)
    binding.bind("a", a)
    binding.bind("b", a)
    binding.bind_output("out", out)
    binding.run()
    assert out.tolist() == [2, 2]


def test_binding_keeps_what_is_bound_alive(graph: Graph) -> None:
    binding, out = Binding(graph), np.zeros(1000, np.float32)
    for name in "ab":
        binding.bind(name, np.full(1000, 4, np.float32))
    binding.bind_output("out", out)
    for _ in range(50):
        np.full(1000, 9, np.float32)
    binding.run()
    assert set(out.tolist()) == {8.0}


def test_sizes_that_do_not_fit_are_one_error(graph: Graph) -> None:
    binding = Binding(graph)
    binding.bind("a", np.zeros(3, np.float32))
    binding.bind("b", np.zeros(2, np.float32))
    binding.bind_output("out", np.zeros(3, np.float32))
    with pytest.raises(GraphError, match=r"Add\.onnx failed") as caught:
        binding.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no graph"], ids=["empty", "text"])
def test_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="cannot load"):
        Graph(path, num_threads=1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot load"):
        Graph(tmp_path / "nowhere.onnx", num_threads=1)


def test_what_cannot_be_allocated_is_insufficient_memory(tmp_path: Path) -> None:
    """A product of two columns, each small, that would be 64 TB."""
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor("a", onnx.TensorProto.FLOAT, ["n", 1]), tensor("b", onnx.TensorProto.FLOAT, [1, "n"])]
    product = onnx.helper.make_node("Mul", ["a", "b"], ["product"])
    total = onnx.helper.make_node("ReduceMax", ["product"], ["out"], keepdims=0)
    outputs = [tensor("out", onnx.TensorProto.FLOAT, [])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([product, total], "g", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, tmp_path / "huge.onnx")
    binding = Binding(Graph(tmp_path / "huge.onnx", num_threads=1))
    binding.bind("a", np.ones((4_000_000, 1), np.float32))
    binding.bind("b", np.ones((1, 4_000_000), np.float32))
    binding.bind_output("out", np.zeros((), np.float32))
    with pytest.raises(InsufficientMemoryError, match="out of memory") as caught:
        binding.run()
    assert caught.value.exit_code == ExitCode.INSUFFICIENT_MEMORY


def bound(graph: Graph) -> Binding:
    binding = Binding(graph)
    for name in ("a", "b"):
        binding.bind(name, np.ones(2, np.float32))
    binding.bind_output("out", np.zeros(2, np.float32))
    return binding


def test_an_interrupt_ends_what_is_run_inside_it_alone(graph: Graph) -> None:
    binding, interrupt = bound(graph), Interrupt()
    with interrupt:
        binding.run()
        interrupt.set()
        with pytest.raises(GraphError, match="terminate"):
            binding.run()
    binding.run()
    with Interrupt():
        binding.run()


def test_an_interrupt_of_one_thread_leaves_another_alone(graph: Graph) -> None:
    interrupt = Interrupt()
    interrupt.set()
    other = bound(graph)
    out = np.zeros(2, np.float32)
    other.bind_output("out", out)
    with interrupt:
        thread = threading.Thread(target=other.run)
        thread.start()
        thread.join(10)
    assert out.tolist() == [2, 2]
