"""Three ways of passing the upper half with four perturbations: ``python -m benchmarks.perturbations ARTIFACT...``.

In turn; as rows of one batch (MobiZO, arXiv 2409.15520), here with one B for all rows, so that the time is a lower
bound of the time for four; and block by block, as on a device (:mod:`edge_runtime.agent.methods.zero_order`). All in
one process, one after the other, several times. Writes JSON lines: processor time, and medians of ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.work import Examples, random_examples
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs
from edge_runtime.formats import adapter
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan

COUNT: Final = 4
RANK: Final = 8
SCALING: Final = 2.0


def main() -> None:
    """Parse, measure every artifact, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="what `fedspine export` wrote")
    parser.add_argument("--batch-size", type=int, default=16, help="examples in a batch, default: %(default)s")
    parser.add_argument("--length", type=int, default=64, help="tokens of an example, default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="times that each is done, default: %(default)s")
    options = parser.parse_args()
    for path in options.artifacts:
        print(json.dumps(measure(path, options.batch_size, options.length, options.runs)), flush=True)


def measure(path: Path, batch_size: int, length: int, runs: int) -> dict[str, Any]:
    """Time the three ways."""
    artifact, rng = Artifact.open(path), np.random.default_rng(0)
    manifest, plan = artifact.manifest, Plan.full(artifact.manifest)
    layout = AdapterLayout.of(manifest, plan, RANK)
    params = layout.flatten(adapter.initial(manifest, artifact.initial() if manifest.dense else {}, RANK, rng))
    graphs = StagedGraphs(artifact, num_threads=1)
    model = graphs.model(slice_weights(artifact, plan, keep_stored=graphs.keeps_stored), layout, SCALING)
    examples = random_examples(manifest, batch_size, length, rng)
    more = Examples(
        input_ids=np.tile(examples.input_ids, (COUNT, 1)),
        labels=np.concatenate([examples.labels] * COUNT),
    )
    one, rows, cut = batch_of(examples), batch_of(more), manifest.num_layers // 2
    below, below_rows = model.lower(one, params, cut), model.lower(rows, params, cut)
    ways: dict[str, Callable[[], object]] = {
        "in turn": lambda: [model.upper(below, one, params, cut) for _ in range(COUNT)],
        "rows": lambda: model.upper(below_rows, rows, params, cut),
        "block by block": lambda: model.upper_each(below, one, params, cut, COUNT, lambda *_: None),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                times[name].append(time.process_time() - began)
    ratios = {
        name: [own / other for own, other in zip(times[name], times["in turn"], strict=True)]
        for name in ways
        if name != "in turn"
    }
    return {
        "artifact": path.name,
        "batch": [batch_size, length],
        "cpu_s": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "of_in_turn": {name: [round(f(r), 3) for f in (min, statistics.median, max)] for name, r in ratios.items()},
    }


if __name__ == "__main__":
    main()
