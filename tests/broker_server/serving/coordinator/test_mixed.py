"""Real devices of two kinds in one run: two have the memory of first-order training, two have that of inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from broker_server.errors import StoreError
from broker_server.methods.by_name import method_of
from broker_server.methods.mixed.method import Mixed
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.tables import MixedConfig, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_with_octets
from tests.broker_server.conftest import Coordination
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.whole_run import WholeRun, cut_before_combining

RANK, ROUNDS, BATCH, LENGTH = 8, 4, 2, 8
STRONG: Final = ("attic", "barn")
WEAK: Final = ("cellar", "dairy")
Play = Callable[..., WholeRun]


def small_memory(artifact_dir: Path) -> int:
    """Return the memory that the probe and zero-order steps fit into, but not first-order training, in either mode."""
    manifest = Artifact.open(artifact_dir).manifest
    plan = Plan.full(manifest)
    enough = max(
        memory.estimate_features_bytes(manifest, plan, BATCH, LENGTH),
        memory.estimate_forward_bytes(manifest, RANK, BATCH, LENGTH),
    )
    modes = [memory.estimate_training_bytes(manifest, plan, RANK, BATCH, LENGTH, m) for m in ("fused", "staged")]
    assert enough < min(modes)
    return enough


@pytest.fixture
def play(
    tiny_bert_artifact: Path, broker: InProcess, coordinate: Callable[[Path], Coordination], tmp_path: Path
) -> Play:
    """A function that plays a run, or goes on with it where it was begun."""
    limits = dict.fromkeys(STRONG, 10**9) | dict.fromkeys(WEAK, small_memory(tiny_bert_artifact))

    def played(name: str, **mixed: int) -> WholeRun:
        run = WholeRun(tmp_path / name, broker.broker)
        return run.play(coordinate, limits, tiny_bert_artifact, broker.url, **settings(**mixed))

    return played


def settings(**mixed: int) -> dict[str, object]:
    return {
        "method": "mixed",
        "num_devices": 4,
        "arms": method_of("mixed").axes.parse(f"first-order:{RANK},zero-order:{RANK}"),
        "scheduler": "costliest",
        "aggregation": "ffa_lora",
        "pruning": PruningConfig(),
        "training": TrainingConfig(
            num_rounds=ROUNDS, num_local_steps=4, batch_size=BATCH, max_length=LENGTH, learning_rate=5e-3
        ),
        "zero_order": ZeroOrderConfig(num_inner=2),
        "mixed": MixedConfig(**mixed),
    }


def by_device(run: WholeRun, value: Callable[[DeviceRecord], object]) -> list[dict[str, object]]:
    """Of each round after round 0."""
    return [{device.device_id: value(device) for device in record.devices} for record in run.records[1:]]


def kinds(strong: str, weak: str) -> dict[str, str]:
    return dict.fromkeys(STRONG, strong) | dict.fromkeys(WEAK, weak)


def test_each_device_does_what_its_memory_allows_and_both_change_one_model(play: Play) -> None:
    run = play("run", num_first_order_rounds=3)

    assert by_device(run, lambda d: d.outcome) == [kinds("accepted", "accepted")] * ROUNDS
    assert by_device(run, lambda d: d.work) == [
        kinds("probe", "probe"),
        kinds("lora", "zero_order"),
        kinds("lora", "zero_order"),
        kinds("zero_order", "zero_order"),
    ]
    axis = Mixed.axes["order"]
    arms = by_device(run, lambda d: axis.format(axis.of(d.arm)))
    assert arms[1:] == [kinds("first-order", "zero-order")] * 3, "what the scheduler chose"
    attempts = by_device(run, lambda d: d.attempt)
    assert [one["cellar"] for one in attempts] == [1, 2, 1, 1], "first-order work is refused once, and not asked again"
    assert {one["attic"] for one in attempts} == {1}
    sent = [one["cellar"] for one in by_device(run, lambda d: d.method and d.method.bytes_up)][1:]
    assert all(isinstance(number, int) and number < 1024 for number in sent)
    models = [decode_with_octets(blob)[0] for blob in run.adapters]
    for before, after in itertools.pairwise(models[1:]):
        moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
        assert moved == {name for name in before if "lora_A" not in name}


def test_a_coordinator_that_is_cut_in_a_mixed_round_ends_with_the_same_bits(play: Play) -> None:
    """It ends when both kinds of reply of round 3 are stored and none is combined; another one goes on."""
    whole = play("whole")
    with cut_before_combining(Mixed, 3), pytest.raises(StoreError, match="cut"):
        play("cut")
    cut = play("cut")
    works = [{device.work for device in record.devices} for record in cut.records[1:]]
    assert works == [{"probe"}, *[{"lora", "zero_order"}] * 3]
    assert cut.adapters == whole.adapters
