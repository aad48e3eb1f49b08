"""Measures the time of a training step by operator: ``python -m benchmarks.operators ARTIFACT``.

The fused training graph runs on random tokens under onnxruntime's own profiler, which slows it by some percent; times
are medians over the counted steps. For each large product the output also has the time of onnxruntime's ``MatMul``
alone on the same sizes: with two matrices that stay in the cache (``hot``), and with many matrices in turn, as in a
step (``cold``). Writes JSON to stdout, and the operators as a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from onnx import TensorProto, helper

from benchmarks.step import NUM_WARMUP_STEPS, Setting, environment, hyper_parameters, spread
from edge_runtime.benchmark.portable_contender import batch_of
from edge_runtime.benchmark.work import random_examples, random_plan
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.fused import FusedGraphs
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats import adapter, names

PRODUCTS: Final = {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
NUM_COLD: Final = 24
"""Sets of matrices that come in turn: more than a cache holds."""
Sizes = tuple[int, int, int]
"""Rows, inner, columns."""


def main() -> None:
    """Parse, profile, time products by themselves, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--pruning-ratio", type=float, default=0.0, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step, default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example, default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="threads of an operator, default: %(default)s")
    parser.add_argument("--steps", type=int, default=12, help="steps that count, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of tokens, ranking and adapter, default: %(default)s")
    parser.add_argument("--matmul-seconds", type=float, default=0.5, help="of each MatMul, default: %(default)s")
    parser.add_argument(
        "--min-share",
        type=float,
        default=0.02,
        help="products that take less of the operators' time are not timed by themselves, default: %(default)s",
    )
    options = vars(parser.parse_args())
    matmul_s, min_share = options.pop("matmul_seconds"), options.pop("min_share")
    setting = Setting(mode="fused", **options)
    steps_s, nodes = profile(setting)
    total_s = sum(node["s"] for node in nodes)
    operators = [
        {"operator": name, "count": len(group), "s": brief(total(group)), "share": brief(total(group) / total_s)}
        for name, group in largest_first(grouped(nodes, lambda node: node["operator"]))
    ]
    products = []
    for (name, sizes), group in largest_first(grouped(nodes, lambda node: (node["operator"], node["sizes"]))):
        if sizes is not None and total(group) >= min_share * total_s:
            products.append(product(name, sizes, group, setting.threads, matmul_s))
    for row in operators:
        print(f"{row['operator']:28} {row['count']:5} {1e3 * row['s']:9.2f} ms {row['share']:7.1%}", file=sys.stderr)
    result = {
        "environment": environment(),
        "setting": {"model": Artifact.open(setting.artifact).manifest.model_name}
        | {key: getattr(setting, key) for key in ("pruning_ratio", "rank", "batch_size", "length", "threads", "steps")},
        "step_wall_s": spread(steps_s),
        "operators_s": brief(total_s),
        "operators": operators,
        "products": products,
    }
    print(json.dumps(result, indent=2))


def profile(setting: Setting) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of every step that counts, and of every node of the graph the median: operator, sizes of a product, s."""
    artifact, rng = Artifact.open(setting.artifact), np.random.default_rng(setting.seed)
    manifest = artifact.manifest
    plan = random_plan(manifest, setting.pruning_ratio, rng)
    start = adapter.initial(manifest, artifact.initial() if manifest.dense else {}, setting.rank, rng)
    start = adapter.restrict(manifest, start, plan, setting.rank)
    trainer = Trainer(artifact, num_threads=setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(
            artifact.path(names.TRAINING_GRAPH), num_threads=setting.threads, profile_prefix=Path(folder) / "profile"
        )
        cast("FusedGraphs", trainer.graphs).training = graph  # replaces the graph without a profiler
        run = trainer.start(plan, setting.rank, start, hyper_parameters(setting))
        batch = batch_of(random_examples(manifest, setting.batch_size, setting.length, rng))
        steps_s = []
        for _ in range(NUM_WARMUP_STEPS + setting.steps):
            begin = time.perf_counter()
            run.step([batch])
            steps_s.append(time.perf_counter() - begin)
        events = json.loads(Path(graph.session.end_profiling()).read_text())
    return steps_s[NUM_WARMUP_STEPS:], medians(events)


def medians(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each node: its operator, its sizes if it is a product, and the median of its seconds."""
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node[event["name"], event["args"]["node_index"]].append(event)
    return [
        {
            "operator": runs[0]["args"]["op_name"],
            "sizes": sizes_of(runs[0]["args"]),
            "s": statistics.median(run["dur"] for run in runs[NUM_WARMUP_STEPS:]) / 1e6,
        }
        for runs in by_node.values()
    ]


def sizes_of(node: dict[str, Any]) -> Sizes | None:
    """Rows, inner and columns of a product of two matrices; None: something else, or products of a batch of them."""
    if node["op_name"] not in PRODUCTS:
        return None
    a, b = (next(iter(shape.values())) for shape in node["input_type_shape"][:2])
    (out,) = (next(iter(shape.values())) for shape in node["output_type_shape"])
    if len(out) != 2 or not math.prod(out):
        return None
    inner = math.isqrt(math.prod(a) * math.prod(b) // math.prod(out))
    return out[0], inner, out[1]


def product(name: str, sizes: Sizes, group: list[dict[str, Any]], threads: int, matmul_s: float) -> dict[str, Any]:
    """Return the rates of a product in the step and by itself, GFLOP/s."""
    flops = 2 * math.prod(sizes)
    return {
        "operator": name,
        "sizes": sizes,
        "count": len(group),
        "s": brief(total(group)),
        "gflops_per_s": brief(flops * len(group) / total(group) / 1e9),
        "matmul_gflops_per_s": {
            kind: {"median": brief(statistics.median(rates)), "max": brief(max(rates))}
            for kind, rates in (
                (kind, [flops / seconds / 1e9 for seconds in time_matmul(sizes, sets, threads, matmul_s)])
                for kind, sets in (("hot", 1), ("cold", NUM_COLD))
            )
        },
    }


def time_matmul(sizes: Sizes, num_sets: int, threads: int, timed_s: float) -> list[float]:
    """Seconds of ``MatMul`` on float32 matrices of these sizes, several sets of them in turn."""
    rows, inner, columns = sizes
    shapes = {"a": (rows, inner), "b": (inner, columns), "c": (rows, columns)}
    values = {
        kind: [helper.make_tensor_value_info(f"{kind}{i}", TensorProto.FLOAT, shape) for i in range(num_sets)]
        for kind, shape in shapes.items()
    }
    nodes = [helper.make_node("MatMul", [f"a{i}", f"b{i}"], [f"c{i}"]) for i in range(num_sets)]
    graph = helper.make_graph(nodes, "products", values["a"] + values["b"], values["c"])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        path.write_bytes(model.SerializeToString())
        binding = Binding(Graph(path, num_threads=threads))
    for i in range(num_sets):
        for kind in ("a", "b"):
            binding.bind(f"{kind}{i}", rng.standard_normal(shapes[kind], dtype=np.float32))
        binding.bind_output(f"c{i}", np.zeros(shapes["c"], np.float32))
    binding.run()
    found, end = [], time.perf_counter() + timed_s
    while time.perf_counter() < end or len(found) < 3:
        begin = time.perf_counter()
        binding.run()
        found.append((time.perf_counter() - begin) / num_sets)
    return found


def grouped(nodes: list[dict[str, Any]], key: Any) -> dict[Any, list[dict[str, Any]]]:  # noqa: ANN401 - keys of two kinds
    """Nodes by their key."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for node in nodes:
        groups[key(node)].append(node)
    return groups


def largest_first(groups: dict[Any, list[dict[str, Any]]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Those that take longest first."""
    return sorted(groups.items(), key=lambda item: -total(item[1]))


def brief(figure: float) -> float:
    """Four digits that mean something."""
    return float(f"{figure:.4g}")


def total(nodes: list[dict[str, Any]]) -> float:
    """Seconds of all of them in one step."""
    return float(sum(node["s"] for node in nodes))


if __name__ == "__main__":
    main()
