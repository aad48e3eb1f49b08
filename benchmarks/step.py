"""Time and memory of one optimizer step on the device, by arm: ``python -m benchmarks.step ARTIFACT``.

Each arm runs in a fresh process, one after the other, on random tokens: graph loaded, weights sliced, some steps to
warm up, then the steps that count, and after each of them the importance of all units is computed once from its
gradient. Units are ranked at random, which changes no shape. Peers are not run: `fedspine bench engine` sets the engine
against those. Writes JSON to stdout: seconds of wall and processor time
(median, least, greatest) of a step and of one importance, the process's peak memory, versions, machine and its load.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime as dt
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.work import random_examples, random_plan
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.model import Mode
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import adapter
from edge_runtime.system.resident import peak_rss_bytes
from edge_runtime.wire.work import HyperParameters

ARMS: Final = "0.0:8,0.25:8,0.5:8"
NUM_WARMUP_STEPS: Final = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The settings of one measurement."""

    artifact: Path
    pruning_ratio: float
    rank: int
    batch_size: int
    length: int
    threads: int
    mode: Mode
    steps: int
    seed: int


class Stopwatch:
    """Wall and processor time, seconds, of the same thing done several times."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def time(self, work: Callable[[], object]) -> None:
        """Do it once more."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        work()
        self.wall_s.append(time.perf_counter() - begin)
        self.cpu_s.append(time.process_time() - cpu_begin)


def main() -> None:
    """Parse, measure every arm, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--arms", default=ARMS, help="pruning ratio and LoRA rank of each, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step, default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example, default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    parser.add_argument("--mode", choices=("fused", "staged"), default="fused", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="steps that count, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of tokens, ranking and adapter, default: %(default)s")
    arguments = vars(parser.parse_args())
    arms = [arm.split(":") for arm in arguments.pop("arms").split(",")]
    settings = [Setting(pruning_ratio=float(ratio), rank=int(rank), **arguments) for ratio, rank in arms]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        results = list(pool.map(measure, settings))
    print(json.dumps({"environment": environment(), "arms": results}, indent=2))


def measure(setting: Setting) -> dict[str, Any]:
    """Time the steps of one arm, in a process of its own."""
    artifact = Artifact.open(setting.artifact)
    manifest, rng = artifact.manifest, np.random.default_rng(setting.seed)
    plan = random_plan(manifest, setting.pruning_ratio, rng)
    full = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, setting.rank, rng)
    begin = time.perf_counter()
    run = Trainer(artifact, num_threads=setting.threads, mode=setting.mode).start(
        plan, setting.rank, adapter.restrict(manifest, full, plan, setting.rank), hyper_parameters(setting)
    )
    load_s = time.perf_counter() - begin
    batch = batch_of(random_examples(manifest, setting.batch_size, setting.length, rng))
    steps, scorings = Stopwatch(), Stopwatch()
    for _ in range(NUM_WARMUP_STEPS + setting.steps):
        steps.time(lambda: run.step([batch]))
        scorings.time(run.score_units)
    return {
        **{key: value for key, value in dataclasses.asdict(setting).items() if key != "artifact"},
        "model": manifest.model_name,
        "sparsity": round(plan.sparsity(manifest), 4),
        "num_trainable": sum(value.size for value in run.adapter().values()),
        "load_s": round(load_s, 3),
        "step_wall_s": spread(steps.wall_s[NUM_WARMUP_STEPS:]),
        "step_cpu_s": spread(steps.cpu_s[NUM_WARMUP_STEPS:]),
        "importance_wall_s": spread(scorings.wall_s[NUM_WARMUP_STEPS:]),
        "importance_cpu_s": spread(scorings.cpu_s[NUM_WARMUP_STEPS:]),
        "peak_memory_mib": peak_rss_bytes() // 2**20,
    }


def hyper_parameters(setting: Setting) -> HyperParameters:
    """Those of an ordinary assignment."""
    return HyperParameters(
        learning_rate=1e-3,
        weight_decay=0.01,
        lora_scaling=2.0,
        max_grad_norm=1.0,
        num_warmup_steps=2,
        num_local_steps=NUM_WARMUP_STEPS + setting.steps,
        batch_size=setting.batch_size,
        num_accumulation_steps=1,
        max_length=setting.length,
        seed=setting.seed,
    )


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and greatest, to a tenth of a millisecond."""
    found = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 4) for name, value in found.items()}


def environment() -> dict[str, Any]:
    """Return the command, versions, system and load that a result must state; folders by their last name only."""
    words = [Path(word).name for word in sys.argv[1:]]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *words]),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime")},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


if __name__ == "__main__":
    main()
