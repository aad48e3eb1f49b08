"""Measures fleets that mix on a label-skewed split: ``python -m benchmarks.mixed ARTIFACT --train FILE --test FILE``.

Four devices: two strong ones have the first half of the classes and the memory of first-order training, two weak ones
have the other classes and memory for forward passes alone. Coordinator and devices are those of any run, in one
process. Writes JSON to stdout: loss and accuracy after the first, the middle and the last round, on held-out examples
of either half of the classes, by case and seed. All cases but one begin with the probe's round:

- ``strong``: the strong devices alone;
- ``mixed``: all devices; ``mixed_share``: the same with a share of 4 for zero-order updates; ``mixed_nothing``: with a
  share of 1e-6, so that all that counts of weak devices is their part in the probe's head;
- ``as_it_is``: as ``mixed``, from a head at random, without the probe's round;
- ``zowarmup``: as ``mixed``, and all devices zero-order from the middle on;
- ``first_order``: all devices have the memory of first-order training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import fleet_in_process
from benchmarks.fleet import processor
from benchmarks.step import environment
from broker_server.config import CoordinatorConfig
from broker_server.methods.by_name import method_of
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.tables import MixedConfig, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.evaluation.held_out import HeldOut
from broker_server.serving.storage.adapters import GlobalAdapters
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.plan import Plan

STRONG: Final = ("strong-1", "strong-2")
WEAK: Final = ("weak-1", "weak-2")
CASES: Final = ("strong", "mixed", "zowarmup", "as_it_is", "first_order", "mixed_nothing", "mixed_share")
RANK: Final = 8
SHARES: Final = {"mixed_share": 4.0, "mixed_nothing": 1e-6}
"""By case; 1 in others."""


def main() -> None:
    """Parse, play, print."""
    options = parser().parse_args()
    runs = []
    for seed in map(int, options.seeds.split(",")):
        for case in options.cases.split(","):
            with tempfile.TemporaryDirectory(prefix="fedspine-mixed-") as folder:
                runs.append({"case": case, "seed": seed} | play(case, seed, options, Path(folder)))
            print(f"mixed: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    json.dump({"environment": environment() | {"processor": processor()}, "runs": runs}, sys.stdout, indent=2)
    print()


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote, of named classes")
    parser.add_argument("--train", type=Path, required=True, help="JSON lines to train on")
    parser.add_argument("--test", type=Path, required=True, help="held-out JSON lines")
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=200, help="of each device, default: %(default)s")
    parser.add_argument("--eval-examples", type=int, default=150, help="of each half, default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="local steps, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=32, help="tokens, default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="first-order, default: %(default)s")
    parser.add_argument("--zo-learning-rate", type=float, default=2e-2, help="default: %(default)s")
    return parser


def play(case: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run; quality on either half of the classes, and the kinds of work of the last round."""
    artifact, run_dir, rng = Artifact.open(options.artifact), folder / "run", np.random.default_rng(seed)
    labels = artifact.manifest.labels
    halves = labels[: len(labels) // 2], labels[len(labels) // 2 :]
    devices = STRONG if case == "strong" else (*STRONG, *WEAK)
    data = write_split(options, halves, folder, rng)
    config = config_of(case, seed, options, artifact, len(devices))
    works = {}
    for name in devices:
        small = name in WEAK and case != "first_order"
        works[name] = WorkSettings(
            data=data[name],
            num_holdout=0,
            num_threads=1,
            memory_limit_bytes=small_memory(artifact, options) if small else 10**10,
            modes=("fused",),
        )
    last = fleet_in_process.play(config, options.artifact, run_dir, works)[-1]
    return {
        "work": {device.device_id: device.work for device in last.devices},
        "rounds": evaluate(artifact, config, run_dir, [data["first half"], data["other half"]]),
    }


def small_memory(artifact: Artifact, options: argparse.Namespace) -> int:
    """Bytes that suffice for forward passes, not for training in one piece."""
    manifest, size = artifact.manifest, (options.batch_size, options.max_length)
    plan = Plan.full(manifest)
    forward = memory.estimate_forward_bytes(manifest, RANK, *size)
    enough = max(forward, memory.estimate_features_bytes(manifest, plan, *size))
    if enough >= memory.estimate_training_bytes(manifest, plan, RANK, *size):
        sys.exit("training needs no more memory than forward passes here: take larger batches")
    return enough


def write_split(
    options: argparse.Namespace, halves: Sequence[Sequence[str]], folder: Path, rng: np.random.Generator
) -> dict[str, Path]:
    """Files of devices and of held-out examples, by name; strong devices have the first half of the classes."""
    files = {}
    for names, held_out, classes in zip((STRONG, WEAK), ("first half", "other half"), halves, strict=True):
        for source, parts, size in (
            (options.train, names, options.examples),
            (options.test, (held_out,), options.eval_examples),
        ):
            rows = [
                row for line in source.read_text("utf-8").splitlines() if (row := json.loads(line))["label"] in classes
            ]
            order = rng.permutation(len(rows))[: size * len(parts)]
            if len(order) < size * len(parts):
                sys.exit(f"{source.name} has {len(rows)} examples of {', '.join(classes)}: fewer than are asked for")
            for number, name in enumerate(parts):
                files[name] = folder / f"{name}.jsonl"
                chosen = (rows[index] for index in order[number * size : (number + 1) * size])
                files[name].write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    return files


def config_of(
    case: str, seed: int, options: argparse.Namespace, artifact: Artifact, num_devices: int
) -> CoordinatorConfig:
    """Return the configuration of a run."""
    axes = method_of("mixed").axes
    return CoordinatorConfig(
        run_id=f"{case}-{seed}",
        fleet="mixed",
        broker_url="mqtt://localhost:1",
        artifact_url="http://localhost:1/",
        artifact_digest=artifact.digest,
        num_devices=num_devices,
        method="mixed",
        arms=axes.parse(f"first-order:{RANK},zero-order:{RANK}"),
        scheduler="costliest",
        aggregation="ffa_lora",
        seed=seed,
        training=TrainingConfig(
            num_rounds=options.rounds,
            num_local_steps=options.steps,
            batch_size=options.batch_size,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
        ),
        pruning=PruningConfig(importance="magnitude"),
        zero_order=ZeroOrderConfig(head="as-it-is" if case == "as_it_is" else "probe"),
        mixed=MixedConfig(
            zero_order_learning_rate=options.zo_learning_rate,
            zero_order_share=SHARES.get(case, 1.0),
            num_first_order_rounds=(options.rounds + 1) // 2 if case == "zowarmup" else None,
        ),
    )


def evaluate(
    artifact: Artifact, config: CoordinatorConfig, run_dir: Path, halves: Sequence[Path]
) -> list[dict[str, Any]]:
    """Loss and accuracy on either half, after some rounds."""
    training = config.training
    held_out = [
        HeldOut(artifact, path, max_length=training.max_length, num_examples=None, batch_size=16, seed=0)
        for path in halves
    ]
    adapters = GlobalAdapters(
        run_dir, artifact.manifest, artifact.digest, rank=RANK, lora_scaling=training.lora_scaling
    )
    rounds = []
    for number in sorted({1, (training.num_rounds + 1) // 2, training.num_rounds}):
        model = adapters.read(number)
        quality = [one.evaluate(model, RANK, training.lora_scaling, use_all=False, num_threads=1) for one in held_out]
        rounds.append(
            {
                "round": number,
                "accuracy": [round(one.accuracy or 0.0, 4) for one in quality],
                "loss": [round(one.loss, 4) for one in quality],
            }
        )
    return rounds


if __name__ == "__main__":
    main()
