"""Measures a device's memory by mode and base: ``python -m benchmarks.memory ARTIFACT... --out FOLDER``.

Every artifact (the same model with another ``--base``) trains in staged mode, the first in fused mode too, each in a
fresh process: some steps of random tokens and one scoring of units. Writes ``memory.json`` and ``memory.svg``: the
parts of the estimate by which a device picks its mode (:mod:`edge_runtime.engine.memory`), and beside them the peak
resident set that was measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.step import Setting, environment, hyper_parameters
from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.work import random_examples
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.memory import TrainingMemory, training_memory
from edge_runtime.engine.model import Mode
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import adapter, names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.system.resident import peak_rss_bytes

NUM_STEPS: Final = 4
MIB: Final = 2**20
PARTS: Final = {
    "process": "interpreter, packages, graphs",
    "weights": "frozen weights",
    "state": "adapter, gradients, moments",
    "hidden": "hidden states between blocks",
    "linear": "linear layers",
    "attention": "attention weights",
    "scores": "scores",
}
"""Of the estimate, as the figure calls them."""


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="what `fedspine export` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the two files go")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step, default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example, default: %(default)s")
    options = parser.parse_args()
    cases: list[tuple[Path, Mode]] = [(path, "staged") for path in options.artifacts]
    settings = [
        Setting(
            artifact=path,
            pruning_ratio=0.0,
            rank=options.rank,
            batch_size=options.batch_size,
            length=options.length,
            threads=1,
            mode=mode,
            steps=NUM_STEPS,
            seed=0,
        )
        for path, mode in [(options.artifacts[0], "fused"), *cases]
    ]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        results = list(pool.map(measure, settings))
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), "cases": results}, indent=2) + "\n"
    (options.out / "memory.json").write_text(text)
    draw(results, options.out / "memory.svg")


def measure(setting: Setting) -> dict[str, Any]:
    """Train a little; return the peak of this process, and the estimate of it."""
    artifact, rng = Artifact.open(setting.artifact), np.random.default_rng(setting.seed)
    manifest = artifact.manifest
    plan = Plan.full(manifest)
    start = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, setting.rank, rng)
    trainer = Trainer(artifact, num_threads=setting.threads, mode=setting.mode)
    run = trainer.start(plan, setting.rank, start, hyper_parameters(setting))
    batch = batch_of(random_examples(manifest, setting.batch_size, setting.length, rng))
    for _ in range(setting.steps):
        run.step([batch])
    run.score_units()
    parts = training_memory(manifest, plan, setting.rank, setting.batch_size, setting.length, setting.mode)
    return {
        "model": manifest.model_name,
        "mode": setting.mode,
        "base": base_of(manifest),
        "base_blob_bytes": manifest.files[names.BASE_FILE].size_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "estimate": dataclasses.asdict(parts),
    }


def base_of(manifest: Manifest) -> str:
    """Return the type in which most of the blocks' matrices are stored."""
    stored = Counter(spec.dtype for spec in manifest.tensors if spec.layer is not None and len(spec.shape) == 2)
    return stored.most_common(1)[0][0]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A bar of parts for each case, and a line where the measured peak is."""
    import matplotlib as mpl  # noqa: PLC0415 - not in the processes that are measured

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    shown = [part for part in PARTS if any(case["estimate"][part] for case in results)]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.55 * len(results)), layout="constrained")
    for row, case in enumerate(results):
        left = 0.0
        for name in shown:
            width = case["estimate"][name] / MIB
            label = PARTS[name] if row == 0 else None
            axes.barh(row, width, left=left, color=f"C{shown.index(name)}", label=label)
            left += width
        peak = case["peak_rss_bytes"] / MIB
        axes.plot([peak, peak], [row - 0.45, row + 0.45], color="black", label="measured peak" if row == 0 else None)
        axes.annotate(f"{peak:.0f} MiB", (max(peak, left), row), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(results)), [f"{case['mode']}, {case['base']}" for case in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(max(case["peak_rss_bytes"], total(case)) for case in results) / MIB)
    axes.set_xlabel("MiB")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    mpl.rcParams["svg.hashsalt"] = "memory"  # the same figures always give the same file
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def total(case: dict[str, Any]) -> int:
    """Sum of the parts of the estimate, bytes."""
    return sum(dataclasses.asdict(TrainingMemory(**case["estimate"])).values())


if __name__ == "__main__":
    main()
