"""Small requests."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.wire.work import Arm, HyperParameters


def request_for(
    artifact: Path, *, engine: str = "fused", model: str = "", pruning_ratio: float = 0.0, num_steps: int = 6
) -> BenchmarkRequest:
    """Two batches of warm-up, then three steps that are timed, of ``num_steps``; rank 2, 3 x 8 tokens."""
    return BenchmarkRequest(
        engine=engine,
        artifact=str(artifact),
        model=model,
        ort_models="",
        arm=Arm(pruning_ratio=pruning_ratio, rank=2),
        num_threads=1,
        num_warmup_steps=2,
        num_timed_steps=3,
        hyper_parameters=HyperParameters(
            learning_rate=1e-2,
            weight_decay=0.01,
            lora_scaling=2.0,
            max_grad_norm=1.0,
            num_warmup_steps=0,
            num_local_steps=num_steps,
            batch_size=3,
            num_accumulation_steps=1,
            max_length=8,
            seed=0,
        ),
    )
