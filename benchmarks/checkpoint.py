"""Measures the cost of a checkpoint beside a training step: ``python -m benchmarks.checkpoint ARTIFACT``.

One process, random tokens: after every step the state is encoded with its checksum, written aside, flushed to disk and
renamed, as a device does it every so many steps; at the end a second run takes the last one up. Writes JSON to stdout:
bytes, seconds of wall and processor time (median, least, greatest) of a step, of a checkpoint and of taking one up,
versions, machine and its load. Name a folder on the disk that is meant (``--folder``): flushing is most of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step import NUM_WARMUP_STEPS, Setting, Stopwatch, environment, hyper_parameters, spread
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.work import random_examples
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.checkpoint import Checkpoint
from edge_runtime.engine.trainer import Trainer, TrainingRun
from edge_runtime.engine.training_state import History
from edge_runtime.formats import adapter
from edge_runtime.formats.plan import Plan


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step, default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example, default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator, default: %(default)s")
    parser.add_argument("--mode", choices=("fused", "staged"), default="fused", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="steps that count, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of tokens and adapter, default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where checkpoints go, default: a temporary folder")
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    setting = Setting(pruning_ratio=0.0, **arguments)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        print(json.dumps({"environment": environment(), **measure(setting, Path(place))}, indent=2))


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Steps, each with a checkpoint behind it, and then the last one taken up."""
    artifact = Artifact.open(setting.artifact)
    rng = np.random.default_rng(setting.seed)
    trainer = Trainer(artifact, num_threads=setting.threads, mode=setting.mode)
    run = start(trainer, setting, np.random.default_rng(setting.seed))
    batch = batch_of(random_examples(artifact.manifest, setting.batch_size, setting.length, rng))
    checkpoints, history = Checkpoints(folder, 1), History()
    steps, savings, resumptions = Stopwatch(), Stopwatch(), Stopwatch()

    def save() -> None:
        checkpoints.save(
            Checkpoint(identity="x" * 64, state=run.state(), history=history, before=None, before_s=0.0, paused_s=0.0)
        )

    for _ in range(NUM_WARMUP_STEPS + setting.steps):
        steps.time(lambda: run.step([batch]))
        history.losses.append(0.0)
        history.step_times_s.append(0.0)
        savings.time(save)
    for _ in range(3):
        again = start(trainer, setting, np.random.default_rng(setting.seed))

        def take_up(again: TrainingRun = again) -> None:
            checkpoint = checkpoints.load("x" * 64)
            if checkpoint is None:
                msg = "the checkpoint that was just written cannot be read"
                raise RuntimeError(msg)
            again.restore(checkpoint.state)

        resumptions.time(take_up)
    return {
        "model": artifact.manifest.model_name,
        "rank": setting.rank,
        "mode": setting.mode,
        "threads": setting.threads,
        "num_trainable": run.layout.num_elements,
        "checkpoint_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "step_wall_s": spread(steps.wall_s[NUM_WARMUP_STEPS:]),
        "step_cpu_s": spread(steps.cpu_s[NUM_WARMUP_STEPS:]),
        "checkpoint_wall_s": spread(savings.wall_s[NUM_WARMUP_STEPS:]),
        "checkpoint_cpu_s": spread(savings.cpu_s[NUM_WARMUP_STEPS:]),
        "resume_wall_s": spread(resumptions.wall_s),
    }


def start(trainer: Trainer, setting: Setting, rng: np.random.Generator) -> TrainingRun:
    """A run of the full plan from a fresh adapter."""
    artifact = trainer.artifact
    initial = artifact.initial() if artifact.manifest.dense else {}
    full = adapter.initial(artifact.manifest, initial, setting.rank, rng)
    return trainer.start(Plan.full(artifact.manifest), setting.rank, full, hyper_parameters(setting))


if __name__ == "__main__":
    main()
