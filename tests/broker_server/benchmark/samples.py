"""Settings and samples of a small benchmark."""

from __future__ import annotations

import dataclasses
from typing import Any

from broker_server.benchmark.contenders import contenders_of
from broker_server.benchmark.play import Sample, Samples
from broker_server.benchmark.products import Product, Products
from broker_server.benchmark.settings import LOSS_STEPS, BenchSettings
from edge_runtime.benchmark.protocol import BenchmarkResult
from edge_runtime.wire.work import Arm

SETTINGS = BenchSettings(
    model="somewhere/tiny",
    task="causal-lm",
    batch_size=2,
    length=10,
    arm=Arm(pruning_ratio=0.0, rank=8),
    targets="q_proj,v_proj",
    base="stored",
    runs=3,
    steps=4,
    threads=1,
    against=("torch",),
    num_labels=None,
    seed=0,
    ort_python="none/bin/python",
)
SMALL = Product(batch=1, rows=10, inner=10, columns=10)
LARGE = Product(batch=2, rows=100, inner=100, columns=50)
PRODUCTS: Products = Products({SMALL: 3, LARGE: 1})


def settings(**changes: Any) -> BenchSettings:
    return dataclasses.replace(SETTINGS, **changes)


def sample(step_s: float, peak: int, cold_s: float, loss: float = 0.5, num_trainable: int = 9) -> Sample:
    """A run whose steps take ``step_s``, one of them far longer, and whose losses are all ``loss``."""
    return Sample(
        result=BenchmarkResult(
            num_trainable=num_trainable,
            first_step_at=100.0,
            step_times_s=(step_s, step_s, 50.0, step_s),
            losses=(loss,) * (LOSS_STEPS + 1),
            peak_rss_bytes=peak,
            versions={"numpy": "2"},
        ),
        cold_start_s=cold_s,
    )


def samples(given: BenchSettings = SETTINGS, **changed: list[Sample]) -> Samples:
    """Ours take 0.1 s a step and 100 bytes, peers twice that; ``changed`` by contender."""
    found = {}
    for contender in contenders_of(given):
        factor = 2 if contender.name == "torch" else 1
        found[contender.name] = [
            sample(0.1 * factor * scale, 100 * factor, 1.5 * factor * scale) for scale in (1.0, 0.9, 1.2)
        ]
    return Samples(by_contender=found | changed, best_s={SMALL: 2e-6, LARGE: 1e-3}, p50_s={SMALL: 4e-6, LARGE: 4e-3})
