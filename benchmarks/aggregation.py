"""Time and bytes of every aggregation rule on the shapes of MiniLM-L6, with ten devices of mixed ranks and plans.

Random factors: neither depends on the values. Processor time, least of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.step import environment
from broker_server.methods.aggregation import AGGREGATIONS, Aggregated, Aggregation, DeviceUpdate, make_aggregation
from broker_server.methods.aggregation.fedspine import FedSpine
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import DenseSpec, GroupSpec, Manifest, PruneAxis, TargetSpec, TextSpec
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import plan_at

NUM_LAYERS, HIDDEN, NUM_HEADS, NUM_CHANNELS = 6, 384, 12, 1536
NUM_DEVICES = 10
RANKS, RATIOS = (8, 4, 2), (0.0, 0.25, 0.5)

K = TypeVar("K")


def minilm() -> Manifest:
    """MiniLM-L6 as far as aggregation knows it: six targets in each layer, a classifier of four classes."""
    groups, targets = [], []
    for layer in range(NUM_LAYERS):
        groups += [
            GroupSpec(layer=layer, group="heads", num_units=NUM_HEADS),
            GroupSpec(layer=layer, group="channels", num_units=NUM_CHANNELS),
        ]
        for name, group, unit_size, width, prunes_rows in (
            *((name, "heads", HIDDEN // NUM_HEADS, HIDDEN, True) for name in ("query", "key", "value")),
            ("output", "heads", HIDDEN // NUM_HEADS, HIDDEN, False),
            ("up", "channels", 1, NUM_CHANNELS, True),
            ("down", "channels", 1, NUM_CHANNELS, False),
        ):
            prune = PruneAxis(axis=0 if prunes_rows else 1, group=group, unit_size=unit_size)
            targets.append(
                TargetSpec(
                    module=f"layer.{layer}.{name}",
                    layer=layer,
                    in_features=HIDDEN if prunes_rows else width,
                    out_features=width if prunes_rows else HIDDEN,
                    out_prune=prune if prunes_rows else None,
                    in_prune=None if prunes_rows else prune,
                )
            )
    return Manifest(
        format_version=1,
        family="bert",
        task="text-classification",
        model_name="minilm",
        num_layers=NUM_LAYERS,
        block_prefixes=tuple(f"layer.{layer}." for layer in range(NUM_LAYERS)),
        word_embedding="embedding",
        post_norm=False,
        hidden_size=HIDDEN,
        labels=("a", "b", "c", "d"),
        text=TextSpec(pad_token_id=0, eos_token_id=None, append_eos=False, max_length=512, vocab_size=30522),
        groups=tuple(groups),
        tensors=(),
        targets=tuple(targets),
        dense=(DenseSpec(name="classifier.weight", shape=(4, HIDDEN)),),
        files={},
        producer={},
    )


def main() -> None:
    """Parse, measure every rule, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each rule, default: %(default)s")
    num_rounds = parser.parse_args().rounds
    results = [measure(name, num_rounds) for name in AGGREGATIONS]
    print(json.dumps({"environment": environment(), "num_rounds": num_rounds, "rules": results}, indent=2))


def measure(name: str, num_rounds: int) -> dict[str, Any]:
    """Rounds of one rule: processor time of the server, bytes of the mean device."""
    rng, rule, manifest = np.random.default_rng(0), make_aggregation(name), minilm()
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    arms = list(itertools.islice(itertools.cycle(itertools.product(RATIOS, RANKS)), NUM_DEVICES))
    devices = [(plan_at(manifest, importance, ratio), rank) for ratio, rank in arms]
    shapes = AdapterLayout.of(manifest, Plan.full(manifest), max(RANKS)).shapes
    state = Aggregated(adapter=random(rng, shapes))
    seconds, downs, ups = [], [], []
    for _ in range(num_rounds):
        downs.append(np.mean([len(encode_payload(rule.start(manifest, state, *device))) for device in devices]))
        updates = [update(rng, manifest, rule, f"board-{k}", *device) for k, device in enumerate(devices)]
        payloads = [Payload(adapter=dict(one.tensors), importance=dict(one.importance)) for one in updates]
        ups.append(np.mean([len(encode_payload(payload)) for payload in payloads]))
        started = time.process_time()
        state = rule.aggregate(manifest, state, updates, rng)
        seconds.append(time.process_time() - started)
    downs.append(np.mean([len(encode_payload(rule.start(manifest, state, *device))) for device in devices]))
    print(f"{name}: done", file=sys.stderr)
    return {
        "rule": name,
        "aggregate_cpu_s": [round(value, 3) for value in seconds],
        "mean_bytes_up": round(ups[0]),
        "mean_bytes_down": [round(value) for value in downs],
    }


def update(
    rng: np.random.Generator, manifest: Manifest, rule: Aggregation, device_id: str, plan: Plan, rank: int
) -> DeviceUpdate:
    """A device's update, with importance for the rule that uses it."""
    sizes = {key: (units.size,) for key, units in plan.units.items()}
    return DeviceUpdate(
        device_id=device_id,
        plan=plan,
        rank=rank,
        num_examples=100,
        tensors=random(rng, AdapterLayout.of(manifest, plan, rank).trained(rule.trainable).shapes),
        importance={key: np.abs(value) for key, value in random(rng, sizes).items()}
        if isinstance(rule, FedSpine)
        else {},
    )


def random(rng: np.random.Generator, shapes: Mapping[K, tuple[int, ...]]) -> dict[K, npt.NDArray[np.float32]]:
    """Normal values."""
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


if __name__ == "__main__":
    main()
