"""Graphs merge what is equal and keep what is needed; traced functions are PyTorch's functions, at any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from exporter.artifact.graph import Graph
from exporter.artifact.stage_graph import StageGraph
from exporter.artifact.trace import Tensors, Traced, Tracer
from exporter.artifact.translate import translate
from exporter.errors import ExportError

FLOAT = (np.float32, ("n", "m"))


def test_equal_nodes_and_constants_are_one() -> None:
    graph = Graph()
    x = graph.input("x", *FLOAT)
    first = graph.op("Add", x, graph.constant(1.0, np.float32))
    with graph.scope("elsewhere"):
        assert graph.op("Add", x, graph.constant(1.0, np.float32)) == first
    assert graph.op("Add", x, graph.constant(1, np.int64)) != first
    assert graph.op("Add", graph.constant(1.0, np.float32), x) != first


def test_only_what_outputs_need_is_written() -> None:
    graph = Graph()
    x = graph.input("x", *FLOAT)
    kept = graph.op("Neg", graph.op("Exp", x))
    graph.op("Sin", graph.constant(2.0, np.float32))
    model = graph.model("test", {"out": (kept, np.float32, ("n", "m"))})
    assert [node.op_type for node in model.graph.node] == ["Exp", "Neg"]
    assert not model.graph.initializer


def test_an_output_must_be_computed() -> None:
    graph = Graph()
    x = graph.input("x", *FLOAT)
    with pytest.raises(ExportError, match="must be computed"):
        graph.model("test", {"out": (x, np.float32, ())})
    y = graph.op("Neg", x)
    with pytest.raises(ExportError, match="must be computed"):
        graph.model("test", {"a": (y, np.float32, ()), "b": (y, np.float32, ())})


def traced(function: Callable[[torch.Tensor], torch.Tensor]) -> Traced:
    tracer = Tracer(["n", "m"])

    def with_gradient(t: Tensors) -> Tensors:
        x = t["x"].detach().requires_grad_()
        out = function(x)
        (gradient,) = torch.autograd.grad(out.sum(), [x])
        return {"out": out, "gradient": gradient}

    return tracer.trace(with_gradient, {"x": tracer.tensor(("n", ("m", 4)))})


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: (x.softmax(-1) * x).sum(0),
    "log-softmax": lambda x: x.log_softmax(-1) * x,
    "gelu": functional.gelu,
    "gelu with tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: functional.silu(x) * x,
    "relu": lambda x: functional.relu(x) + 1,
    "powers": lambda x: x**2 + x**3 + (x**2 + 1) ** 0.5,
    "norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "layer norm over a fixed axis": lambda x: (
        functional.layer_norm(x.view(-1, 4), (4,), torch.full((4,), 3.0), torch.ones(4)) * x.view(-1, 4)
    ),
    "heads": lambda x: x.view(x.shape[0], x.shape[1] // 4, 4).transpose(0, 1).reshape(-1, 4) @ torch.ones(4, 3),
    "halves": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.view(-1, 4).chunk(2, -1))], -1),
    "choice": lambda x: torch.where(x > 0, x, 2 * x) - torch.where(x <= 1, 1, 0),
    "bits of whole numbers": lambda x: x * ((x > 0).long() * 6 & ((x <= 1).long() * 3 + 4)),
    "both": lambda x: torch.where((x > 0) & (x <= 1), x, 2 * x),
    "division": lambda x: 1 / (x * x + 1) - x / 3,
}


@pytest.fixture(scope="module", params=list(FUNCTIONS))
def function(request: pytest.FixtureRequest) -> tuple[Callable[[torch.Tensor], torch.Tensor], ort.InferenceSession]:
    graph = Graph()
    graph.input("x", np.float32, ("n", "width"))
    unit = graph.constant([4], np.int64)
    sizes = {
        "n": graph.op("Shape", "x", start=0, end=1),
        "m": graph.op("Div", graph.op("Shape", "x", start=1, end=2), unit),
    }
    chosen = FUNCTIONS[request.param]
    values = translate(traced(chosen)).place(graph, {"x": "x"}, sizes, ["out", "gradient"])
    model = graph.model("test", {name: (value, np.float32, None) for name, value in values.items()})  # type: ignore[misc]
    return chosen, ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_an_output_that_is_given_is_not_computed_again() -> None:
    tracer = Tracer(["n"])

    def function(t: Tensors) -> Tensors:
        between = t["x"].exp() * 2
        return {"between": between, "out": between.tanh() + t["x"]}

    graph = Graph()
    graph.input("x", np.float32, ("n",))
    graph.input("known", np.float32, ("n",))
    sizes = {"n": graph.op("Shape", "x", start=0, end=1)}
    stage = translate(tracer.trace(function, {"x": tracer.tensor(("n",))}))
    found = stage.place(graph, {"x": "x"}, sizes, ["out"], {"between": "known"})
    model = graph.model("test", {"out": (found["out"], np.float32, ("n",))})
    assert "Exp" not in {node.op_type for node in model.graph.node}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, known = np.array([[1, 2], [0.5, -0.5]], np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x, "known": known})[0], np.tanh(known) + x, rtol=1e-6)
    whole = stage.place(graph, {"x": "x"}, sizes, ["out"])
    model = graph.model("test", {"out": (whole["out"], np.float32, ("n",))})
    assert "Exp" in {node.op_type for node in model.graph.node}, "what is given in one place is computed in another"


def test_a_given_output_stays_given_where_its_node_is_needed_for_another() -> None:
    inner = Graph()
    inner.input("x", np.float32, (3,))
    largest, where = inner.multi("TopK", ["x", inner.constant([1], np.int64)], 2)
    total = inner.op("Add", largest, inner.op("Cast", where, to=1))
    stage = StageGraph(inner, {"largest": largest, "total": total}, {})
    graph = Graph()
    graph.input("x", np.float32, (3,))
    graph.input("known", np.float32, (1,))
    found = stage.place(graph, {"x": "x"}, {}, ["total"], {"largest": "known"})
    model = graph.model("test", {"total": (found["total"], np.float32, (1,))})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, known = np.array([1, 5, 2], np.float32), np.array([40], np.float32)
    assert session.run(None, {"x": x, "known": known})[0] == [41]


@given(n=st.integers(1, 5), m=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_traced_function_and_its_gradient_hold_at_any_size(
    function: tuple[Callable[[torch.Tensor], torch.Tensor], ort.InferenceSession], n: int, m: int, seed: int
) -> None:
    chosen, session = function
    x = np.random.default_rng(seed).normal(size=(n, 4 * m)).astype(np.float32)
    out, gradient = session.run(["out", "gradient"], {"x": x})
    tensor = torch.from_numpy(x).requires_grad_()
    expected = chosen(tensor)
    expected.sum().backward()
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-5, atol=1e-6)
    assert tensor.grad is not None
    np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-4)


def test_an_operation_without_translation_is_named() -> None:
    with pytest.raises(ExportError, match=r"aten\.cumsum.* has no ONNX translation"):
        translate(traced(lambda x: x.cumsum(0)))


def test_a_function_that_fixes_a_size_is_refused() -> None:
    tracer = Tracer(["n", "m"])
    with pytest.raises(ExportError, match="must stay free"):
        tracer.trace(lambda t: {"out": t["x"] + torch.ones(int(t["x"].shape[0]), 1)}, {"x": tracer.tensor(("n", "m"))})
