"""Rates of onnxruntime's own ``MatMul`` on some shapes: ``python -m exporter.benchmark.matmul_rates REQUEST``.

Each shape is a session of one node with both matrices as inputs, onnxruntime's default options except the number of
threads, and arrays bound once. The shortest of many repetitions is the machine's limit, the median its sustained rate.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edge_runtime.benchmark.process import answer
from edge_runtime.benchmark.protocol import ProductShape, RatesRequest, RatesResult

_NUM_WARMUP: Final = 1
_MIN_REPEATS: Final = 3
_ERRORS_ONLY: Final = 3
_IR_VERSION: Final = 10
_OPSET: Final = 20


def rates(request: RatesRequest) -> RatesResult:
    """Least and median time of each product of a request."""
    rng = np.random.default_rng(0)
    times = [_times_s(shape, request.num_threads, request.min_s, rng) for shape in request.shapes]
    return RatesResult(best_s=tuple(map(min, times)), p50_s=tuple(map(statistics.median, times)))


def _times_s(shape: ProductShape, num_threads: int, min_s: float, rng: np.random.Generator) -> list[float]:
    """Wall times of one product, seconds."""
    batch, rows, inner, columns = shape
    sizes: dict[str, tuple[int, ...]] = {"a": (rows, inner), "b": (inner, columns), "c": (rows, columns)}
    if batch > 1:
        sizes = {name: (batch, *size) for name, size in sizes.items()}
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = num_threads
    session = ort.InferenceSession(_model(sizes), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    arrays = {name: rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    binding.bind_ortvalue_input("a", values["a"])
    binding.bind_ortvalue_input("b", values["b"])
    binding.bind_ortvalue_output("c", values["c"])
    for _ in range(_NUM_WARMUP):
        session.run_with_iobinding(binding)
    times_s: list[float] = []
    spent_s = 0.0
    while len(times_s) < _MIN_REPEATS or spent_s < min_s:
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        times_s.append(time.perf_counter() - began)
        spent_s += times_s[-1]
    return times_s


def _model(sizes: dict[str, tuple[int, ...]]) -> bytes:
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()}
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [values["a"], values["b"]], [values["c"]])
    model: onnx.ModelProto = helper.make_model(
        graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(answer(RatesRequest, rates, sys.argv[1:]))
