"""Updates are read from disk piece by piece while they are combined: the same bits, in a part of the memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.aggregation import minilm, random
from broker_server.errors import StoreError
from broker_server.methods.aggregation import AGGREGATIONS, Aggregated, DeviceUpdate, make_aggregation
from broker_server.serving.storage.stored_tensors import StoredTensors
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import plan_at
from edge_runtime.formats.tensors import WireDtype, decode_tensors
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess


def updates(
    manifest: Manifest, folder: Path, rule: str, arms: list[tuple[float, int]], dtype: WireDtype = "float32"
) -> tuple[list[DeviceUpdate], list[DeviceUpdate]]:
    """The same updates in memory and on disk."""
    rng, trainable = np.random.default_rng(0), make_aggregation(rule).trainable
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    in_memory: list[DeviceUpdate] = []
    on_disk: list[DeviceUpdate] = []
    for number, (ratio, rank) in enumerate(arms):
        plan = plan_at(manifest, importance, ratio)
        shapes = AdapterLayout.of(manifest, plan, rank).trained(trainable).shapes
        blob = encode_payload(Payload(adapter=random(rng, shapes)), dtype)
        path = folder / f"{number}.safetensors"
        path.write_bytes(blob)
        kinds: tuple[Mapping[str, np.ndarray], ...] = (decode_tensors(blob), StoredTensors.of(path, blob))
        for tensors, made in zip(kinds, (in_memory, on_disk), strict=True):
            made.append(
                DeviceUpdate(device_id=f"d{number}", plan=plan, rank=rank, num_examples=number + 1, tensors=tensors)
            )
    return in_memory, on_disk


def start(manifest: Manifest, rank: int) -> Aggregated:
    shapes = AdapterLayout.of(manifest, Plan.full(manifest), rank).shapes
    return Aggregated(adapter=random(np.random.default_rng(1), shapes))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rule", sorted(AGGREGATIONS))
def test_every_rule_makes_the_same_bits_of_files(rule: str, dtype: WireDtype, tmp_path: Path) -> None:
    manifest = tiny.manifest()
    arms = [(0.0, 3)] * 2 if rule == "ffa_lora" else [(0.0, 3), (0.5, 2), (0.5, 1)]
    in_memory, on_disk = updates(manifest, tmp_path, rule, arms, dtype)
    made = [
        make_aggregation(rule).aggregate(manifest, start(manifest, 3), some, np.random.default_rng(2))
        for some in (in_memory, on_disk)
    ]
    assert made[0].adapter.keys() == made[1].adapter.keys()
    for name, value in made[0].adapter.items():
        assert value.tobytes() == made[1].adapter[name].tobytes()
    for module, factors in made[0].merged.items():
        assert [f.tobytes() for f in factors] == [f.tobytes() for f in made[1].merged[module]]


def test_memory_is_that_of_one_target_of_all_devices(tmp_path: Path) -> None:
    manifest, num_devices = minilm(), 40
    _, on_disk = updates(manifest, tmp_path, "fedit", [(0.0, 8)] * num_devices)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    before = start(manifest, 8)
    tracemalloc.start()
    make_aggregation("fedit").aggregate(manifest, before, on_disk, np.random.default_rng(2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 50e6
    assert peak < total / 3


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_file_that_is_damaged_meanwhile_is_told(damage: str, tmp_path: Path) -> None:
    _, (update,) = updates(tiny.manifest(), tmp_path, "fedit", [(0.0, 3)])
    path = tmp_path / "0.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="resume"):
        [update.tensors[name] for name in update.tensors]
    assert len(update.tensors) == len(list(update.tensors))


def test_a_coordinator_combines_a_round_from_files(
    broker: InProcess, tmp_path: Path, coordinate: Callable[[Path], Coordination], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.config(tmp_path, broker.url)
    read: set[tuple[str, str]] = set()
    get = StoredTensors.__getitem__

    def spy(tensors: StoredTensors, name: str) -> np.ndarray:
        read.add((str(tensors._path.relative_to(tmp_path)), name))
        return get(tensors, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", spy)
    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b"):
        running.finish()
    assert {path for path, _ in read} == {f"updates/{n}/{d}.safetensors" for n in (1, 2) for d in "ab"}
    assert len(read) >= 4 * len(tiny.manifest().targets)
