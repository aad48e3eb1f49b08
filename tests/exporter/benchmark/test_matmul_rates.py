"""Matrix products are really made, as large as asked for."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
import pytest

from edge_runtime.benchmark.protocol import RatesRequest
from exporter.benchmark.matmul_rates import _model, rates


def test_every_product_has_a_time_and_a_larger_one_takes_longer() -> None:
    shapes = ((1, 8, 8, 8), (4, 16, 8, 16), (1, 384, 384, 384))
    result = rates(RatesRequest(num_threads=1, shapes=shapes, min_s=0.02))
    assert len(result.best_s) == 3
    assert 0 < result.best_s[0] < result.best_s[2]
    assert all(least <= median < 1 for least, median in zip(result.best_s, result.p50_s, strict=True))


def test_rates_are_possible() -> None:
    """No core makes more than 1 TFLOP/s of float32; a product that is not made would."""
    ((_, rows, inner, columns),) = shapes = ((1, 512, 512, 512),)
    (seconds,) = rates(RatesRequest(num_threads=1, shapes=shapes, min_s=0.02)).best_s
    assert 1e8 < 2 * rows * inner * columns / seconds < 1e12


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_graph_is_a_product(batch: tuple[int, ...]) -> None:
    sizes = {"a": (*batch, 2, 5), "b": (*batch, 5, 4), "c": (*batch, 2, 4)}
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(sizes[name], np.float32) for name in "ab")
    session = ort.InferenceSession(_model(sizes), providers=["CPUExecutionProvider"])
    (c,) = session.run(None, {"a": a, "b": b})
    assert np.allclose(c, a @ b, atol=1e-5)


def test_many_repetitions_of_a_small_product_take_as_long_as_asked() -> None:
    """Tens of thousands of them: what is written down of each must not cost more the more there are."""
    began = time.process_time()
    rates(RatesRequest(num_threads=1, shapes=((1, 2, 2, 2),), min_s=0.4))
    assert time.process_time() - began < 4
