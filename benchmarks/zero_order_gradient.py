"""Gradient, its noise and curvature, block by block, where zero-order tuning begins.

    python -m benchmarks.zero_order_gradient agnews-artifact --train train.jsonl --test test.jsonl

For the tuned tensors of each block, and for the head, at the probe's head (a language model: before training):

``|g|^2``: squared norm of the gradient of the mean loss over the devices' examples. ``held-out``: its inner product
with the gradient over held-out examples; the held-out loss falls by as much for a learning rate of 1, where the loss is
linear. ``variance``: of one example's gradient, summed over elements. ``tr H``: trace of the Hessian of the mean loss,
from ``(L(w + e z) + L(w - e z) - 2 L(w)) / e^2`` with z of +-1 (Hutchinson 1990), and its standard error.

Gradients are those of the engine's backward pass, of batches drawn without replacement, and both squares are without
bias: the variance of the mean is subtracted. docs/zero-order.md has the conclusions from these numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.zero_order import Bench, add_data_options
from edge_runtime.engine.dataset import Batch, Dataset
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import Lowered, StagedGraphs
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, Array
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters
from edge_runtime.zero_order.parts import TunedParts

RUN: Final = "decomfl@0.02"
"""Its first round makes the head; nothing is tuned."""
HEAD: Final = "head"
STEP: Final = np.float32(1e-2)
"""``e``: the perturbation that methods take by default."""

Vectors = npt.NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.set_defaults(steps=1)  # none is taken
    parser.add_argument("--num-batches", type=int, default=120, help="for gradients, default: %(default)s")
    parser.add_argument(
        "--num-traces", type=int, default=4, help="perturbations for tr H, on a quarter of them; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedspine-zero-order-") as name:
        figures = measure(Bench(options, Path(name)), options)
    print("| block | elements | |g|^2 | held-out | variance | tr H |\n|---|---|---|---|---|---|")
    for block, row in figures.items():
        print(
            f"| {block} | {row['elements']:.0f} | {row['squared_norm']:.4f} | {row['held_out']:.4f} "
            f"| {row['variance']:.2f} | {row['trace']:.2f} +- {row['trace_error']:.2f} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures by block."""
    fleet = bench.fleet(RUN, options.seed)
    model, _ = bench.started(fleet)
    rank, scaling = fleet.settings.max_rank, fleet.settings.training.lora_scaling
    manifest, plan = bench.artifact.manifest, Plan.full(bench.artifact.manifest)
    layout, rng = AdapterLayout.of(manifest, plan, rank), np.random.default_rng(options.seed)
    theta = layout.flatten(model.adapter)

    size, count = options.batch_size, options.num_batches
    chosen = [batches(dataset, size, count, rng) for dataset in (bench.own, bench.held_out)]
    own, held_out = (gradients(bench, plan, rank, model.adapter, scaling, some) for some in chosen)
    graphs = StagedGraphs(bench.artifact, num_threads=1)
    staged = graphs.model(slice_weights(bench.artifact, plan, keep_stored=graphs.keeps_stored), layout, scaling)
    few = chosen[0][: -(-len(chosen[0]) // 4)]
    num_targets = sum(batch.num_targets for batch in few)

    figures: dict[str, dict[str, float]] = {}
    for block, (cut, places) in blocks(bench, rank).items():
        lowered = [staged.lower(batch, theta, cut) for batch in few]

        def loss(params: Array, lowered: Sequence[Lowered] = lowered, cut: int = cut) -> float:
            pairs = zip(lowered, few, strict=True)
            return sum(staged.upper(one, batch, params, cut)[0] for one, batch in pairs) / num_targets

        here, traces = loss(theta), []
        for _ in range(options.num_traces):
            noise = np.zeros_like(theta)
            noise[places] = rng.choice(np.array([-1, 1], np.float32), len(places))
            traces.append((loss(theta + STEP * noise) + loss(theta - STEP * noise) - 2 * here) / float(STEP) ** 2)
        figures[block] = {
            "elements": len(places),
            **moments(own[:, places], held_out[:, places], size),
            "trace": float(np.mean(traces)),
            "trace_error": float(np.std(traces, ddof=1) / np.sqrt(len(traces))),
        }
    return figures


def moments(own: Vectors, held_out: Vectors, batch_size: int) -> dict[str, float]:
    """Squared norm of the mean, its product with the held-out mean, and the variance of one example.

    Args:
        own: gradients of batches ``[batches, elements]``.
        held_out: of held-out batches.
        batch_size: examples of a batch.
    """
    spread = float(own.var(axis=0, ddof=1).sum())
    return {
        "squared_norm": float((own.mean(axis=0) ** 2).sum()) - spread / len(own),
        "held_out": float(own.mean(axis=0) @ held_out.mean(axis=0)),
        "variance": spread * batch_size,
    }


def batches(dataset: Dataset, size: int, count: int, rng: np.random.Generator) -> list[Batch]:
    """At most ``count`` batches of examples that differ."""
    order = rng.permutation(len(dataset))[: size * count]
    return [dataset.batch(order[begin : begin + size]) for begin in range(0, len(order) - size + 1, size)]


def gradients(
    bench: Bench, plan: Plan, rank: int, adapter: Mapping[str, Array], scaling: float, chosen: Sequence[Batch]
) -> Vectors:
    """Flat gradients ``[batches, elements]`` at one adapter: the learning rate is 0."""
    still = HyperParameters(
        learning_rate=0.0,
        weight_decay=0.0,
        lora_scaling=scaling,
        max_grad_norm=None,
        num_warmup_steps=0,
        num_local_steps=1,
        batch_size=chosen[0].input_ids.shape[0],
        num_accumulation_steps=1,
        max_length=max(batch.input_ids.shape[1] for batch in chosen),
        seed=0,
    )
    run, found = Trainer(bench.artifact, num_threads=1).start(plan, rank, adapter, still), []
    for batch in chosen:
        run.step([batch])
        found.append(run.layout.flatten(run.gradient()).astype(np.float64))
    return np.stack(found)


def blocks(bench: Bench, rank: int) -> dict[str, tuple[int, npt.NDArray[np.int64]]]:
    """The cut below each block, and the places of its tuned elements; the head lies in the last block's part."""
    manifest, found = bench.artifact.manifest, dict[str, tuple[int, list[npt.NDArray[np.int64]]]]()
    layers = {names.lora_b(target.module): target.layer for target in manifest.targets}
    for tensor in TunedParts.of(manifest, rank, 0).upper:
        cut = layers.get(tensor.name, manifest.num_layers - 1)
        block = str(cut) if tensor.name in layers else HEAD
        found.setdefault(block, (cut, []))[1].append(np.arange(tensor.place.start, tensor.place.stop))
    return {block: (cut, np.concatenate(places)) for block, (cut, places) in found.items()}


if __name__ == "__main__":
    main()
