"""Updates that bring their bytes inside: kept as one that was pulled, and nothing is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from broker_server.methods.by_name import method_of
from broker_server.methods.training import TrainingConfig
from broker_server.serving.storage.adapters import adapter_path
from broker_server.serving.storage.store import Store
from edge_runtime.link.in_process import InProcessLink
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import Assignment, Update, Verdict
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import FLEET, Device
from tests.broker_server.links import InProcess

Coordinate = Callable[[Path], Coordination]
REQUESTS = topics.down(FLEET, "a", "chunkrequest")


def prepare(run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of a probe of two devices: a head is some 200 bytes."""
    write = tiny.write_artifact
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "write_artifact", lambda folder: write(folder, has_bias=True))
        training = TrainingConfig(num_rounds=2, num_local_steps=1, batch_size=2, max_length=8)
        method = method_of("probe_softmax")
        arms = method.axes.parse(method.default_arms)
        fleet.config(run_dir, url, method="probe_softmax", arms=arms, training=training)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Topics of all that is published in this process."""
    found: list[str] = []
    original = InProcessLink.publish

    def publish(link: InProcessLink, topic: str, payload: bytes) -> None:
        found.append(topic)
        original(link, topic, payload)

    monkeypatch.setattr(InProcessLink, "publish", publish)
    return found


def test_nothing_is_pulled_and_the_result_is_the_same_to_the_bit(
    broker: InProcess,
    tmp_path: Path,
    coordinate: Coordinate,
    monkeypatch: pytest.MonkeyPatch,
    published: list[str],
) -> None:
    kept, asked = {}, {}
    for name, most_inline in (("pulled", 0), ("inline", 1024)):
        run_dir = tmp_path / name
        prepare(run_dir, broker.url, monkeypatch)
        published.clear()
        running = coordinate(run_dir)
        a, b = Device(broker.url, "a"), Device(broker.url, "b")
        a.most_inline = b.most_inline = most_inline
        with a, b:
            running.finish()
        asked[name] = published.count(REQUESTS)
        files = [adapter_path(run_dir, number) for number in (1, 2)] + [run_dir / "updates/2/a.safetensors"]
        kept[name] = [file.read_bytes() for file in files]
        updates = Store.open(run_dir).load_updates(2)
        assert [update.key.device_id for update in updates] == ["a", "b"]
        assert all(update.blob is not None and not update.inline for update in updates)
    assert asked == {"pulled": 2, "inline": 0}
    assert kept["inline"] == kept["pulled"]


def test_one_that_comes_again_gets_the_same_verdict(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice before there is a verdict, and in the next round."""
    prepare(tmp_path, broker.url, monkeypatch)
    first: list[Update] = []

    def eager(assignment: Assignment, blob: bytes) -> bytes:
        made = fleet.train(assignment, blob)
        first.append(a.update(assignment, made))
        a.say(first[0])
        a.say(first[0])
        return made

    running = coordinate(tmp_path)
    with Device(broker.url, "a", eager) as a, Device(broker.url, "b"):
        running.finish()
    verdicts = [(m.key.round_number, m.accepted) for m in a.heard(Verdict) if isinstance(m, Verdict)]
    assert verdicts.count((1, True)) >= 3
    assert (2, True) in verdicts
    assert all(accepted for _, accepted in verdicts)
    records = Store.open(tmp_path).load_round_records()
    assert [[d.outcome for d in record.devices] for record in records[1:]] == [["accepted"] * 2] * 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"blob": chunks.describe(b"another")}, "expected one of the two"),
        ({"inline": b"no tensors"}, "tensor blob"),
        ({"inline": bytes(1025)}, "length"),
        ({"inline": b""}, "brings nothing"),
    ],
    ids=["both", "garbage", "more than fits", "nothing"],
)
def test_what_cannot_be_right_costs_its_assignment(
    broker: InProcess,
    tmp_path: Path,
    coordinate: Coordinate,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    why: str,
) -> None:
    prepare(tmp_path, broker.url, monkeypatch)

    def hostile(assignment: Assignment, blob: bytes) -> None:
        said = msgspec.to_builtins(b.update(assignment, fleet.train(assignment, blob)), builtin_types=(bytes,))
        payload = msgspec.msgpack.encode(said | msgspec.to_builtins(change, builtin_types=(bytes,)))
        b.shout(topics.up(FLEET, "b", "update"), payload)

    running = coordinate(tmp_path)
    with Device(broker.url, "a"), Device(broker.url, "b", hostile) as b:
        running.finish()
    for record in Store.open(tmp_path).load_round_records()[1:]:
        assert {d.device_id: d.outcome for d in record.devices} == {"a": "accepted", "b": "rejected"}
        assert why in next(d.detail for d in record.devices if d.device_id == "b")
    assert not (tmp_path / "updates/1/b.safetensors").exists()
