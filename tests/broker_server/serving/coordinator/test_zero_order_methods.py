"""Each zero-order preset with real devices, which all end in the middle of a round with the coordinator, and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.errors import StoreError
from broker_server.experiments.run.resolve import resolve
from broker_server.methods.zero_order.method import ZeroOrder
from edge_runtime.formats.tensors import decode_with_octets
from tests.broker_server.conftest import Coordination
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.whole_run import WholeRun, cut_before_combining

DEVICES = {"attic": 10**9, "barn": 10**9}
ROUNDS = 3
MOST_BYTES = 1024


def settings(method: str) -> dict[str, object]:
    """Those of ``fedspine run --method``, for a tiny model."""
    small = {"devices": 2, "rounds": ROUNDS, "local_steps": 3, "batch_size": 2, "max_length": 8, "arms": "4"}
    made = resolve({"model": "m", "task": "text-classification", "data": "d.jsonl", "method": method, **small})
    names = ("scheduler", "aggregation", "pruning", "training", "zero_order")
    return {"method": method, "num_devices": 2, "arms": made.arms, **{name: getattr(made, name) for name in names}}


@pytest.mark.parametrize("method", ["mezo", "decomfl", "fedspzo", "topzo"])
def test_all_sides_end_in_a_round_and_the_run_ends_with_the_same_bits(
    tiny_bert_artifact: Path,
    broker: InProcess,
    coordinate: Callable[[Path], Coordination],
    tmp_path: Path,
    method: str,
) -> None:
    def play(name: str) -> WholeRun:
        run = WholeRun(tmp_path / name, broker.broker)
        return run.play(coordinate, DEVICES, tiny_bert_artifact, broker.url, **settings(method))

    whole = play("whole")
    works = [{device.work for device in record.devices} for record in whole.records[1:]]
    assert works == [{"probe"}, *[{"zero_order"}] * (ROUNDS - 1)]
    devices = [device for record in whole.records[2:] for device in record.devices]
    assert {device.outcome for device in devices} == {"accepted"}
    sizes = [device.method.bytes_up for device in devices if device.method]
    assert 0 < min(sizes) <= max(sizes) < MOST_BYTES
    first, last = (decode_with_octets(whole.adapters[number])[0] for number in (1, ROUNDS))
    moved = {name for name, value in first.items() if not (value == last[name]).all()}
    is_upper = method == "topzo"
    below = {name for name in first if "lora_B" in name and ".layer.0." in name}
    assert below
    assert (below & moved == set()) == is_upper, "topzo alone leaves the lower half"

    with cut_before_combining(ZeroOrder, ROUNDS), pytest.raises(StoreError, match="cut"):
        play("cut")
    assert play("cut").adapters == whole.adapters
