"""Measures how well unit scores predict the loss change when units are removed: ``python benchmarks/importance.py``.

For each case (MiniLM on AG News, tiny-llama on docstrings of the standard library) the unpruned model is tuned for a
few steps, as one device would, and units are scored from LoRA gradients on the way. Then each head, and each block of
neighbouring channels, is removed alone (physically, as a plan does), and the loss on held-out examples is measured
anew. Spearman's rank correlation between the rise of the loss and the scores rates three kinds of scores: from LoRA
gradients, from weight magnitude, and at random. Correlations are reported over all layers at once (for a global
ranking) and as the mean of each layer's own (for a ranking per layer); for the rise with its sign, and for its
magnitude, which the formula of LoRA gradients estimates. If one removal changes little, the sign of the change depends
on the choice of held-out examples. ``agreement`` compares the rises on two halves of the examples, and so shows the
share of noise.

Writes ``OUT/importance.json`` and ``OUT/importance.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from broker_server.experiments.run.examples import Example, load_data, write_examples
from broker_server.methods.pruning.importance import magnitude_importance
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.evaluator import Evaluator
from edge_runtime.engine.examples import Fields
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.fused import FusedGraphs
from edge_runtime.engine.slicing import shrink_weights
from edge_runtime.engine.trainer import Trainer, TrainingRun, train
from edge_runtime.formats import adapter as adapters
from edge_runtime.formats.manifest import Manifest, Task
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

Scores = Mapping[tuple[int, str], npt.NDArray[np.float32]]
Key = tuple[int, str]

ROOT: Final = Path(__file__).resolve().parents[1]
RANK: Final = 8
EVALUATION_BATCH: Final = 16
NUM_RANDOM: Final = 200
"""Random rankings; the mean of their correlation is 0, and its spread is that of chance."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, its data, and how long it is tuned."""

    name: str
    model: Path
    task: Task
    data: Path | None
    test: Path | None
    label: str | None
    learning_rate: float
    num_steps: int
    batch_size: int
    max_length: int
    num_evaluation: int
    """Held-out examples (text-classification) or windows (causal-lm) that the loss is measured on."""
    num_blocks: int
    """Blocks of channels in a layer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One head or block of channels, and the effect of removing it alone."""

    layer: int
    group: str
    units: tuple[int, ...]
    loss_rises: tuple[float, float]
    """Nats per target, on either half of the held-out examples."""

    @property
    def loss_rise(self) -> float:
        """Mean of both halves."""
        return (self.loss_rises[0] + self.loss_rises[1]) / 2


def cases(shared: Path, *, quick: bool) -> list[Case]:
    """Return the cases to study; ``quick`` is for a test of the script, its figures mean nothing."""
    agnews = shared / "data" / "agnews"
    return [
        Case(
            name="MiniLM, AG News",
            model=shared / "models" / "minilm-l6",
            task="text-classification",
            data=agnews / "train.jsonl",
            test=agnews / "test.jsonl",
            label="label",
            learning_rate=2e-3,
            num_steps=4 if quick else 120,
            batch_size=16,
            max_length=64,
            num_evaluation=16 if quick else 256,
            num_blocks=1 if quick else 16,
        ),
        Case(
            name="tiny-llama, docstrings",
            model=ROOT / "models" / "pretrained" / "tiny-llama",
            task="causal-lm",
            data=None,
            test=None,
            label=None,
            learning_rate=1e-3,
            num_steps=4 if quick else 120,
            batch_size=8,
            max_length=64 if quick else 128,
            num_evaluation=8 if quick else 64,
            num_blocks=1 if quick else 16,
        ),
    ]


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN if one side is constant.

    Raises:
        ValueError: the lengths differ.
    """
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    if ranks[0].shape != ranks[1].shape:
        msg = f"{ranks[0].size} and {ranks[1].size} values cannot be correlated"
        raise ValueError(msg)
    x, y = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else float("nan")


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: npt.NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return mean


def tune(trainer: Trainer, case: Case, dataset: Dataset, seed: int) -> TrainingRun:
    """Tune the unpruned model, scoring units every fifth step."""
    manifest = trainer.artifact.manifest
    given = HyperParameters(
        learning_rate=case.learning_rate,
        weight_decay=0.0,
        lora_scaling=2.0,
        max_grad_norm=1.0,
        num_warmup_steps=max(1, case.num_steps // 10),
        num_local_steps=case.num_steps,
        batch_size=case.batch_size,
        num_accumulation_steps=1,
        max_length=case.max_length,
        seed=seed,
        importance_every_steps=5,
    )
    rng = np.random.default_rng(seed)
    start = adapters.initial(manifest, trainer.artifact.initial(), RANK, rng)
    run = trainer.start(Plan.full(manifest), RANK, start, given)
    train(run, batches(dataset, case.batch_size, rng), given)
    return run


def blocks(manifest: Manifest, num_blocks: int) -> Iterator[tuple[Key, tuple[int, ...]]]:
    """Yield the units to remove, one after the other: every head, and neighbouring channels together."""
    for spec in manifest.groups:
        count = spec.num_units if spec.group == "heads" else num_blocks
        if count > 1 or spec.group != "heads":  # the only head cannot go
            edges = np.linspace(0, spec.num_units, count + 1).astype(int)
            for begin, end in itertools.pairwise(edges.tolist()):
                if end - begin < spec.num_units:
                    yield (spec.layer, spec.group), tuple(range(begin, end))


def removals(run: TrainingRun, artifact: Artifact, case: Case, dataset: Dataset, num_threads: int) -> list[Removal]:
    """The true rise of the loss for every block."""
    manifest, full = artifact.manifest, Plan.full(artifact.manifest)
    graphs = FusedGraphs(artifact, num_threads=num_threads)
    tuned, order = run.adapter(), np.arange(len(dataset))
    halves = [dataset.subset(order[::2]), dataset.subset(order[1::2])]

    def losses(plan: Plan) -> npt.NDArray[np.float64]:
        weights = FrozenWeights({**run.weights, **dict(shrink_weights(manifest, run.weights, full, plan))})
        evaluator = Evaluator(
            artifact, plan, graphs.model(weights, adapters.AdapterLayout.of(manifest, plan, RANK), 2.0)
        )
        part = adapters.restrict(manifest, tuned, plan, RANK)
        return np.array([evaluator.evaluate(part, RANK, 2.0, half, EVALUATION_BATCH).loss for half in halves])

    whole, out = losses(full), []
    for (layer, group), units in blocks(manifest, case.num_blocks):
        kept = np.setdiff1d(np.arange(manifest.group(layer, group).num_units), units)
        first, second = (losses(Plan.from_kept(manifest, {(layer, group): kept})) - whole).tolist()
        out.append(Removal(layer=layer, group=group, units=units, loss_rises=(first, second)))
    return out


def correlate(removed: Sequence[Removal], scores: Scores) -> dict[str, float]:
    """Spearman's correlation of measured rises of the loss with summed scores; see :func:`compare` for the names."""
    summed = np.array([float(scores[r.layer, r.group][list(r.units)].sum()) for r in removed])
    return compare(removed, np.array([r.loss_rise for r in removed]), summed)


def agreement(removed: Sequence[Removal]) -> dict[str, float]:
    """Spearman's correlation of the rises on one half of the examples with those on the other."""
    first, second = np.array([r.loss_rises for r in removed]).T
    signed = compare(removed, first, second)
    sizes = compare(removed, first, np.abs(second))
    return {name: (sizes if name.endswith("_size") else signed)[name] for name in signed}


def compare(
    removed: Sequence[Removal], rises: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Correlation over all layers, and the mean over layers of each layer's own; ``_size``: of the rises' sizes."""
    layers, out = np.array([r.layer for r in removed]), {}
    for suffix, values in (("", rises), ("_size", np.abs(rises))):
        own = [spearman(values[layers == layer], others[layers == layer]) for layer in np.unique(layers)]
        out[f"all_layers{suffix}"], out[f"within_layers{suffix}"] = spearman(values, others), float(np.nanmean(own))
    return out


def study(
    case: Case, artifact: Artifact, train_set: Dataset, test_set: Dataset, seed: int, num_threads: int
) -> dict[str, Any]:
    """One case with one seed: correlations by group and score."""
    trainer = Trainer(artifact, num_threads=num_threads)
    started = time.perf_counter()
    run = tune(trainer, case, train_set, seed)
    tuned_s = time.perf_counter() - started
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(test_set))[: case.num_evaluation])
    removed = removals(run, artifact, case, test_set.subset(chosen), num_threads)
    scores = {"lora": run.importance(), "magnitude": magnitude_importance(artifact.manifest, artifact.weight)}
    table: dict[str, Any] = {}
    for group in ("heads", "channels"):
        mine = [r for r in removed if r.group == group]
        if not mine:
            continue
        random = [_random_correlation(mine, artifact.manifest, rng) for _ in range(NUM_RANDOM)]
        table[group] = {name: correlate(mine, value) for name, value in scores.items()}
        table[group]["random"] = {key: float(np.nanmean([r[key] for r in random])) for key in random[0]}
        table[group]["random_spread"] = {key: float(np.nanstd([r[key] for r in random])) for key in random[0]}
        table[group]["agreement"] = agreement(mine)
        table[group]["num_removed"] = len(mine)
    return {
        "seed": seed,
        "tuned_s": tuned_s,
        "removed_s": time.perf_counter() - started - tuned_s,
        "table": table,
        "removals": [dataclasses.asdict(r) for r in removed],
    }


def _random_correlation(removed: Sequence[Removal], manifest: Manifest, rng: np.random.Generator) -> dict[str, float]:
    scores = {(g.layer, g.group): rng.uniform(size=g.num_units).astype(np.float32) for g in manifest.groups}
    return correlate(removed, scores)


def prepare(case: Case, folder: Path, seed: int) -> tuple[Artifact, Dataset, Dataset]:
    """Export the model and read the data."""
    from exporter.artifact.export import export_model  # noqa: PLC0415 - torch; the rest of this file can be used without it

    data = load_data(case.data, case.test, Fields(label=case.label), np.random.default_rng(seed))
    folder.mkdir(parents=True)
    export_model(case.model, case.task, folder / "artifact", labels=data.labels or None)
    artifact = Artifact.open(folder / "artifact")
    train_set = _read(artifact, folder / "train.jsonl", data.train, case)
    return artifact, train_set, _read(artifact, folder / "test.jsonl", data.test, case)


def _read(artifact: Artifact, path: Path, examples: list[Example], case: Case) -> Dataset:
    write_examples(path, examples)
    return load_examples(path, artifact, case.max_length)


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of medians over the seeds, lowest and highest in brackets."""
    columns = ("all_layers", "within_layers", "all_layers_size", "within_layers_size")
    lines = [
        "# Importance against the true loss change",
        "",
        f"Spearman's rank correlation, {results['machine']}; seeds {', '.join(map(str, results['seeds']))}.",
        "`random` is 0 with the spread of 200 random rankings; `agreement` is that of two halves of the examples.",
    ]
    for name, runs in results["cases"].items():
        lines += [
            "",
            f"## {name}",
            "",
            "| removed | score | rise: all layers | within | its size: all layers | within |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for group, table in runs[0]["table"].items():
            what = f"{table['num_removed']} {'heads' if group == 'heads' else 'blocks of channels'}"
            for score in ("lora", "magnitude", "agreement"):
                cells = [_median([run["table"][group][score][column] for run in runs]) for column in columns]
                lines.append(f"| {what} | {score} | {' | '.join(cells)} |")
            spread = " | ".join(f"0 ± {table['random_spread'][column]:.2f}" for column in columns)
            lines.append(f"| {what} | random | {spread} |")
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{float(np.median(values)):.2f}{spread}"


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models and data")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--case", choices=["minilm", "tiny-llama"], action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tries the script; the figures mean nothing")
    given = parser.parse_args()
    chosen = given.case or ["minilm", "tiny-llama"]
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {given.threads} thread(s), onnxruntime {onnxruntime.__version__}",
        "seeds": given.seeds,
        "rank": RANK,
        "cases": {},
    }
    for key, case in zip(("minilm", "tiny-llama"), cases(given.shared, quick=given.quick), strict=True):
        if key not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            artifact, train_set, test_set = prepare(case, Path(folder) / key, 0)
            results["cases"][case.name] = [
                study(case, artifact, train_set, test_set, seed, given.threads) for seed in given.seeds
            ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "importance.json").write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "importance.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
