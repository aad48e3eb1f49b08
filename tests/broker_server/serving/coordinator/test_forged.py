"""One client of a broker without access rules that speaks in the name of a device, or of the coordinator."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_server.serving.storage.store import Store
from edge_runtime.bounds import limits
from edge_runtime.wire import topics
from edge_runtime.wire.messages import Assignment, Failure, FailureReason, Hello, encode_message, kind_of
from edge_runtime.wire.work import Arm
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import FLEET, Device
from tests.broker_server.links import InProcess
from tests.replies import lora_of

Coordinate = Callable[[Path], Coordination]


def test_refusals_in_the_name_of_a_device_cost_it_a_round_and_no_arm_for_good(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    """Every arm is refused in its name, while it trains; from the next round on it is served, soon with all arms."""
    config = fleet.config(tmp_path, broker.url)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=4))
    (tmp_path / "config.toml").write_text(longer.to_toml())

    def train(assignment: Assignment, blob: bytes) -> bytes:
        if assignment.key.round_number == 1:
            forged = Failure(key=assignment.key, reason=FailureReason.ARM_INFEASIBLE, detail="too little memory")
            broker.broker.route(topics.up(FLEET, "a", kind_of(forged)), encode_message(forged))
        return fleet.train(assignment, blob)

    running = coordinate(tmp_path)
    with Device(broker.url, "a", train) as victim, Device(broker.url, "b"):
        running.finish()

    outcomes = [{d.device_id: d.outcome for d in r.devices} for r in Store.open(tmp_path).load_round_records()[1:]]
    assert outcomes == [{"a": "failed", "b": "accepted"}, *[{"a": "accepted", "b": "accepted"}] * 3]
    arms: dict[int, list[Arm]] = {}
    for message in victim.assignments():
        arms.setdefault(message.key.round_number, []).append(lora_of(message).arm)
    large, small = longer.arms
    assert arms == {1: [large, small], 2: [small], 3: [large], 4: [large]}


def test_nobody_can_take_the_name_of_the_coordinator_s_connection(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker ends a connection when another client takes its name; all that the coordinator publishes is known."""
    fleet.config(tmp_path, broker.url)
    taken: list[str] = []

    def train(assignment: Assignment, blob: bytes) -> bytes:
        (hello, *_) = [message for message in victim.received if isinstance(message, Hello)]
        for name in ("default", hello.session_id, f"{FLEET}:{hello.session_id}", f"{FLEET}:{hello.run_id}"):
            for client_id in (f"fedspine-coordinator-{name}", f"fedspine-coordinator:{name}"):
                intruder = broker.broker.open_link(
                    client_id=client_id,
                    subscriptions=(),
                    will=None,
                    max_message_bytes=limits.MAX_MESSAGE_BYTES,
                    rng=random.Random(0),
                )
                intruder.connect()
                taken.append(client_id)
        return fleet.train(assignment, blob)

    running = coordinate(tmp_path)
    with Device(broker.url, "a", train) as victim, Device(broker.url, "b"):
        running.finish()

    assert len(taken) == 2 * 4 * 2
    assert "waiting for the broker" not in caplog.text
