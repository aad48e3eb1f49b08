"""Updates of any ranks, plans and weights for one layer whose matrices have more components than the adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from msgspec import structs

from broker_server.methods.aggregation import AGGREGATIONS, Aggregated, DeviceUpdate, make_aggregation
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, target_indices
from edge_runtime.formats.manifest import DenseSpec, GroupSpec, Manifest, PruneAxis, TargetSpec
from edge_runtime.formats.plan import Plan
from tests.broker_server import tiny

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

RANK = 4
HIDDEN, HEADS, HEAD_DIM, CHANNELS = 8, 4, 3, 10


def _linear(module: str, shape: tuple[int, int], prune: PruneAxis | None) -> TargetSpec:
    return TargetSpec(
        module=module,
        layer=0,
        in_features=shape[1],
        out_features=shape[0],
        in_prune=prune if prune is not None and prune.axis == 1 else None,
        out_prune=prune if prune is not None and prune.axis == 0 else None,
    )


def _manifest() -> Manifest:
    width = HEADS * HEAD_DIM
    head_rows, head_columns = (PruneAxis(axis=axis, group="heads", unit_size=HEAD_DIM) for axis in (0, 1))
    channel_rows, channel_columns = (PruneAxis(axis=axis, group="channels", unit_size=1) for axis in (0, 1))
    return structs.replace(
        tiny.manifest(),
        num_layers=1,
        block_prefixes=("",),
        word_embedding="embedding",
        post_norm=False,
        hidden_size=HIDDEN,
        groups=(
            GroupSpec(layer=0, group="heads", num_units=HEADS),
            GroupSpec(layer=0, group="channels", num_units=CHANNELS),
        ),
        tensors=(),
        targets=(
            _linear("mixer", (HIDDEN, HIDDEN), None),  # never pruned
            _linear("query", (width, HIDDEN), head_rows),
            _linear("output", (HIDDEN, width), head_columns),
            _linear("up", (CHANNELS, HIDDEN), channel_rows),
            _linear("down", (HIDDEN, CHANNELS), channel_columns),
        ),
        dense=(DenseSpec(name="classifier.weight", shape=(2, HIDDEN)),),
    )


MANIFEST = _manifest()
FULL = Plan.full(MANIFEST)
HALF = Plan.from_kept(MANIFEST, {(0, "heads"): [1, 3], (0, "channels"): [0, 2, 4, 7, 9]})
ROW_PRUNED = [target for target in MANIFEST.targets if target.in_prune is None]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def adapter(plan: Plan, rank: int, seed: int) -> dict[str, Float32]:
    layout, generator = AdapterLayout.of(MANIFEST, plan, rank), rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in layout.shapes.items()}


def before(*, merged: bool = False, rank: int = RANK) -> Aggregated:
    """A global adapter, and something already merged into two of the targets."""
    generator = rng(8)
    factors = {
        target.module: (
            generator.normal(size=(2, target.in_features)).astype(np.float32),
            generator.normal(size=(target.out_features, 2)).astype(np.float32),
        )
        for target in MANIFEST.targets[:2]
    }
    return Aggregated(adapter=adapter(FULL, rank, 7), merged=factors if merged else {})


def update(device_id: str, *, plan: Plan = FULL, rank: int = 2, num_examples: int = 5, seed: int = 0) -> DeviceUpdate:
    return DeviceUpdate(
        device_id=device_id, plan=plan, rank=rank, num_examples=num_examples, tensors=adapter(plan, rank, seed)
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan; two of them need not be nested."""
    return Plan.from_kept(
        MANIFEST,
        {
            (g.layer, g.group): sorted(draw(st.sets(st.integers(0, g.num_units - 1), min_size=1)))
            for g in MANIFEST.groups
        },
    )


@st.composite
def updates(
    draw: st.DrawFn, *, ranks: st.SearchStrategy[int] | None = None, plan: st.SearchStrategy[Plan] | None = None
) -> list[DeviceUpdate]:
    """One to five devices of different ranks, plans and weights, at least one of which counts; some send importance."""
    out = []
    for index in range(draw(st.integers(1, 5))):
        own = update(
            f"board-{index}",
            plan=draw(plans() if plan is None else plan),
            rank=draw(st.integers(1, RANK) if ranks is None else ranks),
            num_examples=draw(st.integers(1 if index == 0 else 0, 1000)),
            seed=draw(st.integers(0, 2**32 - 1)),
        )
        if draw(st.booleans()):
            generator = rng(draw(st.integers(0, 2**32 - 1)))
            scores = {
                (g.layer, g.group): generator.lognormal(size=own.plan.kept(g.layer, g.group).size).astype(np.float32)
                for g in MANIFEST.groups
            }
            own = dataclasses.replace(own, importance=scores)
        out.append(own)
    return out


def as_sent(name: str, updates: Sequence[DeviceUpdate]) -> list[DeviceUpdate]:
    """Updates as devices send them under a rule: without A where it is not trained."""
    if AGGREGATIONS[name].trainable == "all":
        return list(updates)
    return [
        dataclasses.replace(one, tensors={k: v for k, v in one.tensors.items() if not names.is_lora_a(k)})
        for one in updates
    ]


def aggregate(name: str, old: Aggregated, updates: Sequence[DeviceUpdate]) -> Aggregated:
    return make_aggregation(name).aggregate(MANIFEST, old, as_sent(name, updates), rng())


def product(target: TargetSpec, tensors: dict[str, Float32] | Aggregated) -> Float64:
    """Return the dense change of the frozen weight by factors; with an :class:`Aggregated` also by merged ones."""
    merged = tensors.merged if isinstance(tensors, Aggregated) else {}
    adapter = tensors.adapter if isinstance(tensors, Aggregated) else tensors
    pairs = [(adapter[names.lora_a(target.module)], adapter[names.lora_b(target.module)])]
    if target.module in merged:
        pairs.append(merged[target.module])
    out: Float64 = np.sum([b.astype(np.float64) @ a.astype(np.float64) for a, b in pairs], axis=0)
    return out


def held(target: TargetSpec, plan: Plan) -> npt.NDArray[np.bool_]:
    """Return the elements of the dense matrix that a plan holds."""
    rows, columns = target_indices(target, plan)
    out = np.zeros((target.out_features, target.in_features), bool)
    out[
        np.ix_(
            np.arange(out.shape[0]) if rows is None else rows, np.arange(out.shape[1]) if columns is None else columns
        )
    ] = True
    return out


def dense_product(target: TargetSpec, one: DeviceUpdate) -> Float64:
    """A device's product at its place in the whole matrix, zeros elsewhere."""
    out = np.zeros((target.out_features, target.in_features))
    out[held(target, one.plan)] = product(target, dict(one.tensors)).reshape(-1)
    return out


def dense_sum(target: TargetSpec, old: Aggregated, updates: Sequence[DeviceUpdate]) -> Float64:
    """The definition of the exact sum by examples, element by element of the whole matrix."""
    total = np.zeros((target.out_features, target.in_features))
    weight = np.zeros_like(total)
    for one in updates:
        total += one.num_examples * dense_product(target, one)
        weight += one.num_examples * held(target, one.plan)
    return np.where(weight > 0, total / np.maximum(weight, 1), product(target, dict(old.adapter)))


def component_sum(
    target: TargetSpec,
    old: Aggregated,
    updates: Sequence[DeviceUpdate],
    weights: Sequence[Float64] | None = None,
    *,
    absent_keep: bool = False,
) -> Float64:
    """The same where devices count only in the components that they have: component by component, all dense.

    ``weights`` are those of each device at the coordinates it holds, instead of its examples. ``absent_keep``: what a
    device does not have counts with the old value and its examples.
    """
    a, b = names.lora_a(target.module), names.lora_b(target.module)
    out = np.zeros((target.out_features, target.in_features))
    axis = 0 if target.in_prune is not None else 1
    for j in range(old.adapter[a].shape[0]):
        total, weight = np.zeros_like(out), np.zeros_like(out)
        before = np.outer(old.adapter[b][:, j], old.adapter[a][j])
        for index, one in enumerate(updates):
            mask = held(target, one.plan) & (one.rank > j)
            if absent_keep:
                total, weight = total + ~mask * one.num_examples * before, weight + ~mask * one.num_examples
            if one.rank <= j:
                continue
            by_coordinate = np.zeros(out.shape[1 - axis])
            by_coordinate[mask.any(axis=axis)] = one.num_examples if weights is None else weights[index]
            own = mask * (by_coordinate[None, :] if axis == 0 else by_coordinate[:, None])
            value = np.zeros_like(out)
            value[mask] = np.outer(one.tensors[b][:, j], one.tensors[a][j]).reshape(-1)
            total, weight = total + own * value, weight + own
        out += np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), before)
    return out


def merged_product(target: TargetSpec, state: Aggregated) -> Float64:
    return product(target, state) - product(target, dict(state.adapter))


def assert_close(got: Float64, expected: Float64, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))
