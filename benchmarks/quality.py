"""Measures the quality of bases in fewer bits: ``python -m benchmarks.quality ARTIFACT... --train FILE --test FILE``.

Every artifact (the same model with another ``--base``) trains alone, on all examples in one place, from the same first
adapter and on the same batches for each seed; then it is evaluated on the first held-out examples. Writes JSON to
stdout: loss (nats) and accuracy or perplexity before and after, by artifact and seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step import environment
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.trainer import Trainer, train
from edge_runtime.formats import adapter
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path, help="directories that `fedspine export` wrote")
    parser.add_argument("--train", type=Path, required=True, help="JSON lines to train on")
    parser.add_argument("--test", type=Path, required=True, help="held-out JSON lines")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="examples in a step, default: %(default)s")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of an example, default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    parser.add_argument("--eval-examples", type=int, default=2000, help="held out, default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="of batches and adapter, default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    options = parser.parse_args()
    runs = []
    for path in options.artifacts:
        artifact = Artifact.open(path)
        examples, held_out = (
            load_examples(file, artifact, options.max_length) for file in (options.train, options.test)
        )
        held_out = held_out.subset(np.arange(min(len(held_out), options.eval_examples)))
        for seed in map(int, options.seeds.split(",")):
            runs.append({"artifact": path.name, "seed": seed} | quality(artifact, examples, held_out, seed, options))
            print(f"quality: {json.dumps(runs[-1])}", file=sys.stderr)
    json.dump({"environment": environment(), "runs": runs}, sys.stdout, indent=2)
    print()


def quality(
    artifact: Artifact, examples: Dataset, held_out: Dataset, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train once; figures before and after."""
    manifest, rng = artifact.manifest, np.random.default_rng(seed)
    given = HyperParameters(
        learning_rate=options.learning_rate,
        weight_decay=0.01,
        lora_scaling=2.0,
        max_grad_norm=1.0,
        num_warmup_steps=options.steps // 20,
        num_local_steps=options.steps,
        batch_size=options.batch_size,
        num_accumulation_steps=1,
        max_length=options.max_length,
        seed=seed,
    )
    first = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, options.rank, rng)
    trainer = Trainer(artifact, num_threads=options.threads)
    run = trainer.start(Plan.full(manifest), options.rank, first, given)
    evaluator = run.evaluator()

    def evaluate(now: dict[str, Any]) -> EvaluationResult:
        return evaluator.evaluate(now, options.rank, given.lora_scaling, held_out, options.batch_size)

    before = evaluate(first)
    train(run, batches(examples, given.batch_size, np.random.default_rng(seed)), given)
    return {"before": figures(artifact, before), "after": figures(artifact, evaluate(run.adapter()))}


def figures(artifact: Artifact, result: EvaluationResult) -> dict[str, float]:
    """Loss and the task's measure of quality."""
    if artifact.manifest.task == "causal-lm":
        return {"loss": round(result.loss, 4), "perplexity": round(result.perplexity, 2)}
    return {"loss": round(result.loss, 4), "accuracy": round(result.accuracy, 4)}


if __name__ == "__main__":
    main()
