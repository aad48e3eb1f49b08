"""Some steps that any engine can make, from one seed; as a program, with onnxruntime-training in its own environment.

``python -m tests.edge_runtime.ort_training.trajectories ARTIFACT MODELS RATIO RANK STEPS OUT`` plays it there and
writes an ``.npz``; a test plays the same with the portable engine, and compares.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.run import Engine
from edge_runtime.formats import adapter, ranking
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

HYPER_PARAMETERS = HyperParameters(
    learning_rate=1e-3,
    weight_decay=0.01,
    lora_scaling=2.0,
    max_grad_norm=1.0,
    num_warmup_steps=5,
    num_local_steps=200,
    batch_size=2,
    num_accumulation_steps=2,
    max_length=16,
    seed=0,
)
SCORED_EVERY = 40
EXAMPLES = 48


def plan_of(manifest: Manifest, ratio: float) -> Plan:
    """Units by lot: the models were exported with others of the same number."""
    rng = np.random.default_rng(7)
    scores = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    return ranking.plan_at(manifest, scores, ratio)


def examples(manifest: Manifest) -> Dataset:
    rng = np.random.default_rng(3)
    lengths = rng.integers(6, HYPER_PARAMETERS.max_length + 1, EXAMPLES)
    return Dataset(
        tokens=rng.integers(4, manifest.text.vocab_size, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=rng.integers(0, len(manifest.labels), EXAMPLES) if manifest.labels else None,
        pad_token_id=manifest.text.pad_token_id,
    )


def start_adapter(artifact: Artifact, plan: Plan, rank: int) -> dict[str, npt.NDArray[np.float32]]:
    full = adapter.initial(artifact.manifest, artifact.initial(), rank, np.random.default_rng(5))
    return adapter.restrict(artifact.manifest, full, plan, rank)


def play(engine: Engine, artifact: Artifact, ratio: float, rank: int, num_steps: int) -> dict[str, Any]:
    """Losses, norms, scores and evaluations of a course, by name, and the adapter at its end."""
    manifest, hyper = artifact.manifest, HYPER_PARAMETERS
    plan, dataset = plan_of(manifest, ratio), examples(manifest)
    start = start_adapter(artifact, plan, rank)
    run: Any = engine.start(plan, rank, start, hyper)
    drawn = batches(dataset, hyper.batch_size, np.random.default_rng(1))

    def evaluated(of: dict[str, npt.NDArray[np.float32]]) -> tuple[float, int]:
        result = run.evaluator().evaluate(of, rank, hyper.lora_scaling, dataset, 8)
        return result.loss_sum, result.num_correct

    before = evaluated(run.adapter())
    losses, norms = [], []
    for step in range(1, num_steps + 1):
        losses.append(run.step(islice(drawn, hyper.num_accumulation_steps)))
        norms.append(run.grad_norm)
        if step % SCORED_EVERY == 0:
            run.score_units()
    after, of_the_start = evaluated(run.adapter()), evaluated(start)
    scores = {f"importance/{layer}.{group}": value for (layer, group), value in run.importance().items()}
    loss_sums, counts = zip(before, after, of_the_start, strict=True)
    found = {"losses": losses, "norms": norms, "params": run.layout.flatten(run.adapter())}
    return {**found, "loss_sums": loss_sums, "num_correct": counts, **scores}


def memory_of(artifact: Artifact, ratio: float, rank: int) -> dict[str, int]:
    """Bytes that this process used, and the estimate of it."""
    from edge_runtime.ort_training.memory import estimate_ort_training_bytes
    from edge_runtime.system.resident import peak_rss_bytes

    plan, hyper = plan_of(artifact.manifest, ratio), HYPER_PARAMETERS
    sizes = (hyper.batch_size, hyper.max_length)
    estimate = estimate_ort_training_bytes(artifact.manifest, plan, rank, *sizes)
    return {"peak_bytes": peak_rss_bytes(), "estimated_bytes": estimate}


if __name__ == "__main__":
    from edge_runtime.ort_training.trainer import OrtTrainer

    at, models, ratio, rank, num_steps, out = sys.argv[1:]
    trainer = OrtTrainer.open(Path(at), Path(models), num_threads=1)
    played = play(trainer, trainer.artifact, float(ratio), int(rank), int(num_steps))
    np.savez(out, **(played | memory_of(trainer.artifact, float(ratio), int(rank))))
    loaded = {"torch", "transformers"} & set(sys.modules)
    sys.exit(f"the device loaded {loaded}" if loaded else 0)
