"""Every rule of aggregation in whole runs: what devices are sent, what they send, and what the run ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker_server.methods.aggregation import AGGREGATIONS
from broker_server.serving.storage.store import Store
from edge_runtime.formats import names
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.wire.messages import Assignment
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.replies import lora_of


def train_what_is_trainable(
    seen: dict[tuple[str, int], Payload],
) -> Callable[[Assignment, bytes], bytes]:
    """A device that adds its own noise to all that it trains, and keeps what it was sent."""

    def script(assignment: Assignment, blob: bytes) -> bytes:
        payload, trainable = decode_payload(blob), lora_of(assignment).hyper_parameters.trainable
        rank = payload.adapter["mixer.lora_A.weight"].shape[0]
        plan = lora_of(assignment).plan.open(tiny.manifest())
        check_payload(tiny.manifest(), plan, rank, payload, is_update=False)
        seen[assignment.key.device_id, assignment.key.round_number] = payload
        rng = np.random.default_rng((ord(assignment.key.device_id), assignment.key.round_number))
        trained = {
            name: value + rng.normal(0.0, 0.1, value.shape).astype(np.float32)
            for name, value in payload.adapter.items()
            if trainable == "all" or not names.is_lora_a(name)
        }
        return encode_payload(Payload(adapter=trained))

    return script


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_a_run_goes_through(
    broker: InProcess, tmp_path: Path, coordinate: Callable[[Path], Coordination], name: str
) -> None:
    fleet.config(tmp_path, broker.url, aggregation=name)
    seen: dict[tuple[str, int], Payload] = {}
    running = coordinate(tmp_path)
    with (
        Device(broker.url, "a", train_what_is_trainable(seen)),
        Device(broker.url, "b", train_what_is_trainable(seen)),
    ):
        running.finish()
    records = Store.open(tmp_path).load_round_records()
    assert [[d.outcome for d in record.devices] for record in records[1:]] == [["accepted"] * 2] * 2
    last = decode_payload((tmp_path / "adapters/round-0002.safetensors").read_bytes())
    ranks = {key: payload.adapter["mixer.lora_A.weight"].shape[0] for key, payload in seen.items()}
    assert sorted(ranks.values()) == [2, 2, 3, 3]
    is_merging = name in {"flora", "fedex_lora"}
    assert bool(last.merged) == is_merging
    for key, payload in seen.items():
        has_rest = name.startswith("fedspine") and ranks[key] == 2 and key[1] == 2
        assert bool(payload.merged) == (has_rest or (is_merging and key[1] == 2))
    for path in (tmp_path / "updates/2").iterdir():
        sent = decode_payload(path.read_bytes())
        assert any(map(names.is_lora_a, sent.adapter)) == (name != "ffa_lora")
