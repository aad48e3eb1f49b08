"""Split tuning beside other methods: ``python -m benchmarks.split ARTIFACT --train FILE --test FILE --run RUN...``.

A run is a method and options of split tuning: ``fedit``, ``probe``, ``split,cut=3,dtype=int8,noise=0.5``. Coordinator
and devices are those of any run, in one process; all runs have as many local steps, on the same examples of the same
devices. Writes JSON to stdout, by run and seed: accuracy and loss on held-out examples after the last round, bytes that
devices sent, and the examples that these are of.
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
from broker_server.experiments.run.split import parse_split, split
from broker_server.methods.by_name import method_of
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.tables import SplitConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.evaluation.held_out import HeldOut
from broker_server.serving.storage.adapters import GlobalAdapters
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact

RANK: Final = 8
UNLIMITED: Final = 2**40
ARMS: Final = {"fedit": f"0.0:{RANK}", "split": str(RANK)}
"""Of methods that have a choice."""


def main() -> None:
    """Parse, play, print."""
    options = parser().parse_args()
    runs = []
    for seed in map(int, options.seeds.split(",")):
        for run in options.run:
            with tempfile.TemporaryDirectory(prefix="fedspine-split-") as folder:
                runs.append({"run": run, "seed": seed} | play(run, seed, options, Path(folder)))
            print(f"split: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    given = {name: value for name, value in vars(options).items() if isinstance(value, int | float | str)}
    json.dump({"environment": environment() | {"processor": processor()}, "options": given, "runs": runs}, sys.stdout)
    print()


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote, for text-classification")
    parser.add_argument("--train", type=Path, required=True, help="JSON lines to train on")
    parser.add_argument("--test", type=Path, required=True, help="held-out JSON lines")
    parser.add_argument("--run", action="append", required=True, metavar="METHOD[,OPTION=VALUE...]")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--devices", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--split", default="iid", help="how examples are dealt, default: %(default)s")
    parser.add_argument("--examples", type=int, default=2400, help="of all devices, default: %(default)s")
    parser.add_argument("--eval-examples", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=15, help="local steps, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=64, help="tokens, default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of all methods, default: %(default)s")
    return parser


def play(run: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run to its end; quality and bytes."""
    artifact, run_dir = Artifact.open(options.artifact), folder / "run"
    config = config_of(run, seed, options, artifact)
    works = {
        name: WorkSettings(
            data=file, num_holdout=0, num_threads=1, memory_limit_bytes=UNLIMITED, sends_activations=True
        )
        for name, file in write_data(options, seed, folder).items()
    }
    records = fleet_in_process.play(config, options.artifact, run_dir, works)
    return evaluate(artifact, config, run_dir, options) | traffic(records[1:])


def write_data(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Path]:
    """Files of devices by name; the examples are the first ones, and the seed deals them."""
    rows = [json.loads(line) for line in options.train.read_text("utf-8").splitlines()[: options.examples]]
    parts = split(rows, options.devices, parse_split(options.split), np.random.default_rng(seed))
    files = {}
    for number, part in enumerate(parts, start=1):
        files[f"device-{number}"] = folder / f"device-{number}.jsonl"
        files[f"device-{number}"].write_text("".join(json.dumps(rows[i]) + "\n" for i in part), "utf-8")
    return files


def config_of(run: str, seed: int, options: argparse.Namespace, artifact: Artifact) -> CoordinatorConfig:
    """Return the configuration of a run."""
    name, *others = run.split(",")
    more: dict[str, Any] = {}
    for other in others:
        key, _, value = other.partition("=")
        more[key] = value if key == "dtype" else int(value) if key == "cut" else float(value)
    method = method_of(name)
    return CoordinatorConfig(
        run_id=f"{name}-{seed}",
        fleet="split",
        broker_url="mqtt://localhost:1",
        artifact_url="http://localhost:1/",
        artifact_digest=artifact.digest,
        num_devices=options.devices,
        method=name,
        arms=method.axes.parse(ARMS.get(name, method.default_arms)),
        scheduler="fixed",
        aggregation="fedit",
        seed=seed,
        round_deadline_s=3600.0,
        training=TrainingConfig(
            num_rounds=options.rounds,
            num_local_steps=options.steps,
            batch_size=options.batch_size,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
        ),
        pruning=PruningConfig(importance="magnitude"),
        split_tuning=SplitConfig(freeze_lower=name == "split", **more),
    )


def evaluate(
    artifact: Artifact, config: CoordinatorConfig, run_dir: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Loss and accuracy after the last round."""
    training = config.training
    held_out = HeldOut(
        artifact,
        options.test,
        max_length=training.max_length,
        num_examples=options.eval_examples,
        batch_size=16,
        seed=0,
    )
    adapters = GlobalAdapters(
        run_dir, artifact.manifest, artifact.digest, rank=config.max_rank, lora_scaling=training.lora_scaling
    )
    model = adapters.read(training.num_rounds)
    found = held_out.evaluate(model, config.max_rank, training.lora_scaling, use_all=False, num_threads=1)
    return {"accuracy": round(found.accuracy or 0.0, 4), "loss": round(found.loss, 4)}


def traffic(records: Sequence[RoundRecord]) -> dict[str, Any]:
    """Bytes that devices sent, all and those of updates alone; updates by round; examples of the first round."""
    devices = [device for record in records for device in record.devices]
    return {
        "bytes_up": sum(device.measurements.bytes_up for device in devices if device.measurements),
        "update_bytes": sum(device.method.bytes_up for device in devices if device.method),
        "updates": [len(record.devices) for record in records],
        "examples": sum(device.num_examples or 0 for device in records[0].devices),
    }


if __name__ == "__main__":
    main()
