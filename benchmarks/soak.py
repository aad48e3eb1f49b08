"""Measures a device's memory over many steps: ``python benchmarks/soak.py ARTIFACT``.

One process trains for ``--steps`` optimizer steps on random examples whose lengths differ from batch to batch, in
assignments of ``--local-steps`` as a run hands them out, units scored now and then. Its resident set is read every
hundred steps; after a tenth of the steps a straight line is fitted to it. Writes JSON to stdout, and fails when the
line climbs faster than ``--limit``. Needs the device's packages alone, so that it runs with every version of them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.trainer import Trainer, train
from edge_runtime.formats import adapter, names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

EVERY: Final = 100
"""Steps between two readings."""
RANK: Final = 8


def main() -> int:
    """Parse, train, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps, default: %(default)s")
    parser.add_argument("--local-steps", type=int, default=50, help="steps of an assignment, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step, default: %(default)s")
    parser.add_argument("--length", type=int, default=32, help="tokens of the longest example, default: %(default)s")
    parser.add_argument("--mode", choices=("fused", "staged"), default="fused", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    parser.add_argument("--limit", type=float, default=1.0, help="MB per 1,000 steps, default: %(default)s")
    options = parser.parse_args()
    begin = time.perf_counter()
    readings = soak(options)
    slope = slope_of(readings)
    result = {
        "environment": environment(),
        "setting": {name: value for name, value in vars(options).items() if name != "artifact"},
        "model": Artifact.open(options.artifact, verify=False).manifest.model_name,
        "seconds": round(time.perf_counter() - begin, 1),
        "rss_mb": {str(step): round(rss / 1e6, 2) for step, rss in readings[:: max(1, len(readings) // 20)]},
        "slope_mb_per_1000_steps": round(slope, 4),
    }
    print(json.dumps(result, indent=2))
    if slope > options.limit:
        print(f"soak: memory grows by {slope:.2f} MB per 1,000 steps, limit {options.limit:g}", file=sys.stderr)
        return 1
    return 0


def soak(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Train; returns (steps done, resident bytes), one for every :data:`EVERY` steps."""
    artifact = Artifact.open(options.artifact)
    manifest, rng = artifact.manifest, np.random.default_rng(0)
    trainer = Trainer(artifact, num_threads=options.threads, mode=options.mode)
    current = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, RANK, rng)
    drawn, process = random_batches(manifest, options.batch_size, options.length, rng), psutil.Process()
    readings: list[tuple[int, int]] = []
    done = 0
    while done < options.steps:
        hyper = hyper_parameters(options, min(options.local_steps, options.steps - done))
        run = trainer.start(Plan.full(manifest), RANK, current, hyper)
        before = done

        def read(step: int, _: float, before: int = before) -> None:
            if (before + step) % EVERY == 0:
                readings.append((before + step, process.memory_info().rss))

        train(run, drawn, hyper, read)
        current, done = run.adapter(), before + hyper.num_local_steps
    return readings


def slope_of(readings: list[tuple[int, int]]) -> float:
    """MB per 1,000 steps: least squares over the readings after the first tenth."""
    steps, rss = np.array(readings[len(readings) // 10 :], np.float64).T
    return float(np.polyfit(steps / 1000, rss / 1e6, 1)[0])


def random_batches(manifest: Manifest, size: int, length: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches without end; every example is 3 to ``length`` tokens long."""
    while True:
        lengths = rng.integers(min(3, length), length + 1, size)
        mask = (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int64)
        ids = rng.integers(0, manifest.text.vocab_size, mask.shape)
        labels = rng.integers(0, len(manifest.labels), size) if manifest.labels else ids
        if labels.ndim == 2:
            labels = np.where(mask == 1, ids, names.IGNORE_LABEL)
        yield Batch(input_ids=ids, attention_mask=mask, labels=labels)


def hyper_parameters(options: argparse.Namespace, num_steps: int) -> HyperParameters:
    """Those of an ordinary assignment, with a learning rate that random labels do not make diverge."""
    return HyperParameters(
        learning_rate=1e-5,
        weight_decay=0.01,
        lora_scaling=2.0,
        max_grad_norm=1.0,
        num_warmup_steps=0,
        num_local_steps=num_steps,
        batch_size=options.batch_size,
        num_accumulation_steps=1,
        max_length=options.length,
        seed=0,
        importance_every_steps=10,
    )


def environment() -> dict[str, Any]:
    """Return the versions, system and load that a result must state."""
    packages = ("numpy", "onnxruntime", "safetensors", "msgspec")
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


if __name__ == "__main__":
    sys.exit(main())
