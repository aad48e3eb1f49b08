"""Counted products are those that the fused graph really makes, and what a pencil says."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from broker_server.benchmark.products import Product, products_of_forward, products_of_step, total_flops
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest, Task
from edge_runtime.formats.plan import Plan

BATCH, LENGTH, RANK = 3, 7, 5
TARGETS = {
    "bert": ["query,value", "key", "attention.output.dense", "intermediate.dense", "output.dense"],
    "llama": ["q_proj,v_proj", "k_proj", "o_proj", "gate_proj", "down_proj"],
}
CASES = [(family, targets) for family, choices in TARGETS.items() for targets in choices]


def exported(family: str, targets: str, request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    from exporter.artifact.export import export_model

    task: Task = "text-classification" if family == "bert" else "causal-lm"
    model = request.getfixturevalue(f"tiny_{family}_model")
    labels = 3 if family == "bert" else None
    export_model(model, task, tmp_path / "artifact", num_labels=labels, targets=targets.split(","))
    return Artifact.open(tmp_path / "artifact")


def half(manifest: Manifest) -> Plan:
    return Plan.from_kept(manifest, {(g.layer, g.group): range(g.num_units // 2) for g in manifest.groups})


def run_profiled(artifact: Artifact, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Shapes that went through each node of the training graph in one step."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    path = artifact.path(names.TRAINING_GRAPH)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    manifest, rng = artifact.manifest, np.random.default_rng(0)
    layout = AdapterLayout.of(manifest, plan, RANK)
    ids = rng.integers(0, manifest.text.vocab_size, (BATCH, LENGTH))
    rows = np.flatnonzero(np.arange(BATCH * LENGTH) % LENGTH != LENGTH - 1)
    if manifest.labels:
        rows = np.arange(BATCH) * LENGTH
    params = np.ones(layout.num_elements, np.float32)
    feeds = {
        **{spec.name: rng.standard_normal(plan.shape(spec), np.float32) for spec in manifest.tensors},
        names.INPUT_IDS: ids,
        names.ATTENTION_MASK: np.ones_like(ids),
        names.ROWS: rows,
        names.TARGETS: rows % max(2, len(manifest.labels)),
        names.PARAMS: params,
        names.GRAD_ACCUM: params,
        names.SPLIT_SIZES: layout.sizes,
        names.RANK: np.array([RANK]),
        names.LORA_SCALING: np.array(2.0, np.float32),
        names.LOSS_SCALE: np.array(1 / rows.size, np.float32),
    }
    known = {value.name for value in session.get_inputs()}
    session.run(None, {name: value for name, value in feeds.items() if name in known})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"] for event in events if event["name"].endswith("_kernel_time")]


def products_of_graph(nodes: list[dict[str, Any]]) -> Counter[tuple[int, tuple[int, ...]]]:
    """Batch and sizes (rows, inner, columns, in any order) of every product that was made, and how often."""
    found: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for node in nodes:
        if node["op_name"] in {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}:
            a, b = (next(iter(shape.values())) for shape in node["input_type_shape"][:2])
            (out,) = (next(iter(shape.values())) for shape in node["output_type_shape"])
            batch = math.prod(out[:-2])
            inner = math.isqrt(math.prod(a) * math.prod(b) // math.prod(out) // batch)
            assert inner * inner * batch * math.prod(out) == math.prod(a) * math.prod(b)
            found[batch, tuple(sorted((out[-2], inner, out[-1])))] += 1
        else:
            assert "mat" not in node["op_name"].lower(), f"a product that is not looked at: {node['op_name']}"
            assert "attention" not in node["op_name"].lower()
    return found


def assert_counted_as_made(artifact: Artifact, plan: Plan, folder: Path) -> None:
    counted = products_of_step(artifact.manifest, plan, RANK, BATCH, LENGTH)

    expected: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for product, count in counted.items():
        expected[product.batch, tuple(sorted((product.rows, product.inner, product.columns)))] += count
    assert products_of_graph(run_profiled(artifact, plan, folder)) == expected


@pytest.mark.parametrize("family", TARGETS)
def test_counted_products_are_those_of_the_fused_graph(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = Artifact.open(request.getfixturevalue(f"tiny_{family}_artifact"))
    for plan in (Plan.full(artifact.manifest), half(artifact.manifest)):
        assert_counted_as_made(artifact, plan, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "targets"), CASES)
def test_nothing_below_the_first_factor_is_counted(
    family: str, targets: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = exported(family, targets, request, tmp_path)
    for plan in (Plan.full(artifact.manifest), half(artifact.manifest)):
        assert_counted_as_made(artifact, plan, tmp_path)


def test_flops_of_a_small_bert_by_hand(tiny_bert_artifact: Path) -> None:
    """Two blocks, hidden 32, 4 heads of 8, 24 channels, all six linear layers with factors, three classes."""
    manifest = Artifact.open(tiny_bert_artifact).manifest
    tokens, hidden, channels, rank = BATCH * LENGTH, 32, 24, RANK
    square, wide = 2 * tokens * hidden * hidden, 2 * tokens * hidden * channels
    weights = 4 * square + 2 * wide  # query, key, value, output; up, down
    factors = 2 * tokens * rank * (4 * (hidden + hidden) + 2 * (hidden + channels))
    attention = 2 * (BATCH * 4) * LENGTH * LENGTH * 8  # scores, or mixes
    head = 2 * BATCH * hidden * hidden + 2 * BATCH * hidden * 3
    # The last block: keys and values of all tokens, the rest of one in LENGTH.
    last_weights = 2 * square + (2 * square + 2 * wide) // LENGTH
    key_value_factors = 2 * 2 * tokens * rank * (hidden + hidden)
    last_factors = key_value_factors + (factors - key_value_factors) // LENGTH
    last_attention = attention // LENGTH

    forward = weights + factors + 2 * attention + last_weights + last_factors + 2 * last_attention + head
    # Activations' gradients once more, without those of the first block's input; factors' gradients twice: A and B
    # and what lies between; both operands of both of attention's products; the classifier's own weight.
    unneeded = 3 * square + 3 * 2 * tokens * rank * hidden
    backward = weights + 2 * factors + 4 * attention - unneeded + last_weights + 2 * last_factors + 4 * last_attention
    backward += head + 2 * BATCH * hidden * 3

    counted = products_of_step(manifest, Plan.full(manifest), rank, BATCH, LENGTH)
    assert total_flops(counted) == forward + backward


def test_flops_of_forward_passes_of_a_small_bert_by_hand(tiny_bert_artifact: Path) -> None:
    manifest = Artifact.open(tiny_bert_artifact).manifest
    tokens, hidden, channels = BATCH * LENGTH, 32, 24
    attention = 2 * 2 * (BATCH * 4) * LENGTH * LENGTH * 8
    head = 2 * BATCH * hidden * hidden + 2 * BATCH * hidden * 3

    def whole(rank: int) -> int:
        """A block all of whose tokens count."""
        square = 2 * tokens * (hidden * hidden + rank * (hidden + hidden))
        return 4 * square + 2 * 2 * tokens * (hidden * channels + rank * (hidden + channels)) + attention

    def last(rank: int) -> int:
        """A block that gives one token in LENGTH, of keys and values of all."""
        keys_and_values = 2 * 2 * tokens * (hidden * hidden + rank * (hidden + hidden))
        return keys_and_values + (whole(rank) - keys_and_values) // LENGTH

    def flops(layers: range, *, is_scored: bool, rank: int = RANK) -> int:
        return total_flops(products_of_forward(manifest, rank, BATCH, LENGTH, layers, is_scored=is_scored))

    assert flops(range(1), is_scored=False) == whole(RANK)
    assert flops(range(1, 2), is_scored=True) == last(RANK) + head
    assert flops(range(2), is_scored=True) == whole(RANK) + last(RANK) + head
    assert flops(range(2), is_scored=True, rank=0) == whole(0) + last(0) + head
    assert flops(range(0), is_scored=False) == 0


def test_forward_products_are_those_of_a_step_whose_backward_pass_is_left_out(tiny_llama_artifact: Path) -> None:
    manifest = Artifact.open(tiny_llama_artifact).manifest
    step = products_of_step(manifest, Plan.full(manifest), RANK, BATCH, LENGTH)
    forward = products_of_forward(manifest, RANK, BATCH, LENGTH, range(manifest.num_layers), is_scored=True)

    assert all(step[product] >= count for product, count in forward.items())
    assert 2 < total_flops(step) / total_flops(forward) < 2.5  # frozen weights have no gradient


def test_flops_with_factors_on_query_and_value_by_hand(tiny_bert_artifact: Path) -> None:
    """The first block needs no gradient of its keys, and none that leaves its projections downwards."""
    whole = Artifact.open(tiny_bert_artifact).manifest
    targets = tuple(target for target in whole.targets if target.module.endswith((".query", ".value")))
    manifest = msgspec.structs.replace(whole, targets=targets)
    tokens, hidden, channels = BATCH * LENGTH, 32, 24
    square, wide = 2 * tokens * hidden * hidden, 2 * tokens * hidden * channels
    narrow = 2 * tokens * RANK * hidden  # either product of a factor, and each of their gradients
    attention = 2 * (BATCH * 4) * LENGTH * LENGTH * 8
    head = 2 * BATCH * hidden * hidden + 2 * BATCH * hidden * 3

    # Of the second block's tokens one in LENGTH, but for keys and values.
    short = 2 * square + (2 * square + 2 * wide + 2 * attention) // LENGTH
    forward = 4 * square + 2 * wide + 2 * 2 * narrow + 2 * attention + short + 2 * narrow + 2 * narrow // LENGTH + head
    first = square + 2 * wide + 2 * 3 * narrow + 3 * attention
    second = short + 2 * attention // LENGTH + 4 * narrow + 4 * narrow // LENGTH
    backward = first + second + head + 2 * BATCH * hidden * 3

    assert total_flops(products_of_step(manifest, Plan.full(manifest), RANK, BATCH, LENGTH)) == forward + backward


def test_a_product_takes_two_operations_a_term() -> None:
    product = Product(batch=2, rows=3, inner=5, columns=7)
    assert product.flops == 2 * 2 * 3 * 5 * 7
    assert total_flops(Counter({product: 4})) == 4 * product.flops
