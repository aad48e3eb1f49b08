"""Loss against work and bytes: zero-order methods, first-order LoRA and the probe, from the same head.

    python -m benchmarks.zero_order sst2-artifact --train train.jsonl --test test.jsonl --out OUT \
        --run decomfl@0.02 --run fedspzo@0.02 --run topzo@0.05,zo_cut=5,zo_inner=32 --seeds 0,1,2
    python -m benchmarks.zero_order_table OUT

Plays a fleet in this process (``benchmarks.counted_fleet``: the methods of both sides, no link) with each run and seed
until it has taken ``--budget`` operations beyond its start, and writes a file for each. Existing files are not made
again. A run is a method, its learning rate, and other options of ``fedspine run``.

A seed draws the split, the adapter, the batches and the noise; the examples and those that are held out are the same
for all, and the same devices take part in a round. A classifier starts from the probe's head, of a round before with
all devices, with the scale that makes logits of its scores, for first-order methods too. That round's operations and
bytes are in the first point of each run.

A point has the loss on held-out examples and, as ``own_loss``, that on as many of those that the devices tune on.

``--tune`` evaluates on examples of the training file that no device has, to choose rates by.

Without ``--train`` a language model is tuned on the docstrings of the running Python's standard library.
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

from benchmarks.counted_fleet import Fleet
from benchmarks.step import environment
from broker_server.experiments.run.docstrings import docstring_examples, standard_library
from broker_server.experiments.run.examples import LABEL, Example, needed_fields, read_examples, write_examples
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.settings import RunSettings
from broker_server.experiments.run.split import SplitSpec, parse_split, split
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.by_name import method_of
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.formats.plan import Plan

POOL_SEED: Final = 0
"""Of the examples that devices share, and of those that are held out: the same for every seed of a run."""
PROBE: Final = "topzo"
"""Its first round makes the head that all start from."""
MOST_ROUNDS: Final = 10_000
EVAL_BATCH: Final = 32


class Bench:
    """One artifact, the training examples, and the held-out ones.

    Args:
        options: of ``play``.
        folder: for the devices' files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self.artifact = Artifact.open(options.artifact)
        self.task = self.artifact.manifest.task
        spec = parse_split(options.split)
        rows = self._rows(options.train, spec)
        order = np.random.default_rng(POOL_SEED).permutation(len(rows))
        self._pool = [rows[index] for index in order[: options.examples]]
        held_out = [rows[index] for index in order[options.examples :]]
        if options.test is not None and not options.tune:
            held_out = self._rows(options.test, SplitSpec(kind="iid"))
            held_out = [held_out[i] for i in np.random.default_rng(POOL_SEED).permutation(len(held_out))]
        elif options.tune:  # what is left may be few: not the ones that stand for the test
            held_out = held_out[::-1]
        self.held_out = self._dataset("held-out", held_out[: options.eval_examples])
        self.own = self._dataset("shared-out", self._pool[: options.eval_examples])
        self._evaluator = Evaluator.load(self.artifact, Plan.full(self.artifact.manifest), num_threads=1)

    def play(self, run: str, seed: int) -> dict[str, Any]:
        """One run from beginning to end; its points are also told as they come."""
        options, fleet = self._options, self.fleet(run, seed)
        model, number = self.started(fleet)
        points = [self._point(fleet, number, model)]
        show(run, seed, points[-1])
        begin = points[0]["flops"]
        for end in np.linspace(0, options.budget, options.points + 1)[1:]:
            while fleet.counts["flops"] - begin < end * 1e12 and number < MOST_ROUNDS:
                number += 1
                model = fleet.play_round(number, model, options.per_round)
            points.append(self._point(fleet, number, model))
            show(run, seed, points[-1])
        return {"run": run, "seed": seed, "points": points}

    def fleet(self, run: str, seed: int) -> Fleet:
        """The devices and the method of a run."""
        return Fleet(self.artifact, self._settings(*parsed(run), seed), self._split(seed), self._folder)

    def started(self, fleet: Fleet) -> tuple[Aggregated, int]:
        """The model that tuning begins with, and its round: the probe's, or that before training."""
        settings = fleet.settings
        if self.task != "text-classification":
            return fleet.initial(), 0
        if method_of(settings.method) is method_of(PROBE):
            return fleet.play_round(1, fleet.initial()), 1
        first = Fleet(
            self.artifact, self._settings(PROBE, 1.0, {}, settings.seed), self._split(settings.seed), self._folder
        )
        model = first.play_round(1, first.initial())
        fleet.counts.update(first.counts)
        return Aggregated(adapter=model.adapter), 1

    def _point(self, fleet: Fleet, number: int, model: Aggregated) -> dict[str, Any]:
        rank, scaling = fleet.settings.max_rank, fleet.settings.training.lora_scaling
        result, own = (
            self._evaluator.evaluate(model.adapter, rank, scaling, dataset, EVAL_BATCH)
            for dataset in (self.held_out, self.own)
        )
        return {
            "round": number,
            **{name: fleet.counts[name] for name in ("flops", "bytes_up", "bytes_down")},
            "loss": round(result.loss, 6),
            "accuracy": round(result.accuracy, 4),
            "own_loss": round(own.loss, 6),
        }

    def _settings(self, method: str, rate: float, more: dict[str, object], seed: int) -> RunSettings:
        options = self._options
        given: dict[str, object] = {
            "task": self.task,
            "model": str(options.artifact),
            "data": str(options.train or ""),
            "method": method,
            "learning_rate": rate,
            "final_learning_rate_ratio": 1.0,
            "devices": options.devices,
            "rounds": MOST_ROUNDS,
            "local_steps": options.steps,
            "batch_size": options.batch_size,
            "max_length": options.max_length,
            "split": options.split,
            "emulate": "none",
            "seed": seed,
        }
        return resolve({**given, **more})

    def _split(self, seed: int) -> dict[str, Dataset]:
        options, rng = self._options, np.random.default_rng([POOL_SEED, seed])
        parts = split(self._pool, options.devices, parse_split(options.split), rng)
        return {
            f"device-{index:02d}": self._dataset(f"device-{index:02d}", [self._pool[i] for i in part])
            for index, part in enumerate(parts, start=1)
        }

    def _rows(self, path: Path | None, spec: SplitSpec) -> list[Example]:
        if path is None:
            return docstring_examples(standard_library())
        return read_examples(path, needed_fields(self.task, spec, "text", LABEL))

    def _dataset(self, name: str, rows: list[Example]) -> Dataset:
        path = self._folder / f"{name}.jsonl"
        write_examples(path, rows)
        return load_examples(path, self.artifact, self._options.max_length)


def parsed(run: str) -> tuple[str, float, dict[str, object]]:
    """Method, learning rate, and other options by name.

    >>> parsed("topzo@0.05,zo_cut=5,zo_combine=median")
    ('topzo', 0.05, {'zo_cut': 5, 'zo_combine': 'median'})
    """
    first, *others = run.split(",")
    method, _, rate = first.partition("@")
    more: dict[str, object] = {}
    for other in others:
        name, _, value = other.partition("=")
        try:
            more[name] = json.loads(value)
        except ValueError:
            more[name] = value
    return method, float(rate), more


def show(run: str, seed: int, point: dict[str, Any]) -> None:
    """One line of progress."""
    print(
        f"{run} seed {seed}: round {point['round']}, {point['flops'] / 1e12:.3f} TFLOP, "
        f"loss {point['loss']:.4f}, accuracy {point['accuracy']:.4f}, of own examples {point['own_loss']:.4f}",
        file=sys.stderr,
        flush=True,
    )


def play(options: argparse.Namespace) -> None:
    """All runs that are not there yet, seed by seed."""
    features = options.out / "features"
    features.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedspine-zero-order-") as name:
        folder = Path(name)
        (folder / "probe").symlink_to(features.resolve())
        bench: Bench | None = None
        for seed in map(int, options.seeds.split(",")):
            for run in options.run:
                path = options.out / f"{run}-{seed}{'-tune' if options.tune else ''}.json"
                if path.exists():
                    continue
                bench = bench or Bench(options, folder)
                kept = {name: getattr(options, name) for name in KEPT}
                result = {"environment": environment(), "options": kept, **bench.play(run, seed)}
                path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


KEPT: Final = (
    "devices",
    "per_round",
    "split",
    "examples",
    "steps",
    "batch_size",
    "max_length",
    "budget",
    "eval_examples",
    "tune",
)
"""Options that a result is of."""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that a ``Bench`` is made of."""
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--train", type=Path, help="JSON lines to train on")
    parser.add_argument("--test", type=Path, help="held-out JSON lines; default: others of the training file")
    parser.add_argument("--devices", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--split", default="dirichlet:0.5", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=3000, help="of all devices, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=32, help="tokens of an example, default: %(default)s")
    parser.add_argument("--eval-examples", type=int, default=400, help="held out, default: %(default)s")
    parser.add_argument("--tune", action="store_true", help="evaluate on examples of the training file")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--run", action="append", required=True, metavar="METHOD@RATE[,OPTION=VALUE...]")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument(
        "--budget", type=float, default=5.0, help="TFLOP of a run after the probe, default: %(default)s"
    )
    parser.add_argument("--per-round", type=int, help="devices that tune in a round, default: all")
    parser.add_argument("--steps", type=int, default=5, help="of a device in a round, default: %(default)s")
    parser.add_argument(
        "--points", type=int, default=1, help="evaluations of a run, evenly over the budget, default: %(default)s"
    )
    options = parser.parse_args(arguments)
    play(options)


if __name__ == "__main__":
    main()
