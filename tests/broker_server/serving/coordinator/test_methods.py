"""Each method through the coordinator, and update transforms: a restart within a round gives the same bits."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError, StoreError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.by_name import method_of
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import Combined, Method
from broker_server.methods.probe.method import Probe
from broker_server.methods.training import TrainingConfig
from broker_server.serving.coordinator.run_context import open_run
from broker_server.serving.storage.adapters import GlobalAdapters, adapter_path
from broker_server.serving.storage.events import EventReader, RoundStarted
from broker_server.serving.storage.store import Store
from edge_runtime.formats.probe import encode_statistics, sum_features
from edge_runtime.formats.tensors import decode_tensors
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import ProbeWork, type_of
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.broker_server.other_axes import ONE_ARM, THREE_AXES

Coordinate = Callable[[Path], Coordination]
HEAD = ("classifier.bias", "classifier.weight")


@pytest.fixture(autouse=True)
def _model_with_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "write_artifact", functools.partial(tiny.write_artifact, has_bias=True))


def sums(assignment: Assignment, blob: bytes) -> bytes:
    """Sums over ten examples, others for each device; the head is what it starts from, and nothing else."""
    assert sorted(decode_tensors(blob)) == [*HEAD]
    assert isinstance(assignment.work, ProbeWork)
    rng = np.random.default_rng(ord(assignment.key.device_id))
    features = rng.normal(size=(10, tiny.HIDDEN)).astype(np.float32)
    return encode_statistics(sum_features(features, (features[:, 0] > 0).astype(np.int64), 2))


SCRIPTS = {
    "fedit": fleet.train,
    "probe": sums,
    "probe_softmax": fleet.train,
    THREE_AXES: fleet.train,
    ONE_ARM: fleet.train,
}
ARMS = {"fedit": "0.0:3", THREE_AXES: "0.0:3:batch_size=4,0.5:2"}
CLASSES = {"fedit": Lora, "probe": Probe, "probe_softmax": Probe}


def prepare(run_dir: Path, url: str, method: str, transforms: str = "") -> None:
    training = TrainingConfig(num_rounds=2, num_local_steps=1, batch_size=2, max_length=8, weight_decay=0.01)
    fleet.config(
        run_dir,
        url,
        method=method,
        aggregation="fedit",
        arms=method_of(method).axes.parse(ARMS.get(method, method_of(method).default_arms)),
        training=training,
        update_transforms=transforms,
    )


def play(broker: InProcess, run_dir: Path, coordinate: Coordinate, method: str) -> None:
    running = coordinate(run_dir)
    with Device(broker.url, "a", SCRIPTS[method]), Device(broker.url, "b", SCRIPTS[method]):
        running.finish()


@pytest.mark.parametrize(("method", "work"), [("fedit", "lora"), ("probe", "probe"), ("probe_softmax", "probe")])
def test_a_welcome_says_what_work_will_be_asked_for(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, method: str, work: str
) -> None:
    prepare(tmp_path, broker.url, method)
    running = coordinate(tmp_path)
    with Device(broker.url, "a", SCRIPTS[method]) as a, Device(broker.url, "b", SCRIPTS[method]):
        running.finish()
    (welcome, *_), (assignment, *_) = a.heard(Welcome), a.heard(Assignment)
    assert isinstance(welcome, Welcome)
    assert isinstance(assignment, Assignment)
    assert welcome.work == work
    assert isinstance(assignment.work, type_of(welcome.work))


@pytest.mark.parametrize(
    ("method", "transforms"),
    [
        ("fedit", ""),
        ("fedit", "clip:0.05,noise:0.1"),
        ("probe", ""),
        ("probe_softmax", ""),
        ("probe_softmax", "noise:1"),
    ],
)
def test_a_restart_in_the_middle_of_a_round_gives_the_same_bits(
    broker: InProcess,
    tmp_path: Path,
    coordinate: Coordinate,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    transforms: str,
) -> None:
    """The coordinator ends when both updates of round 2 are accepted and none is combined."""
    for name in ("whole", "cut"):
        prepare(tmp_path / name, broker.url, method, transforms)
    play(broker, tmp_path / "whole", coordinate, method)
    combine = CLASSES[method].combine

    def fail(made: Method, round_number: int, *rest: object) -> Combined:
        if round_number == 2:
            msg = "cut"
            raise StoreError(msg)
        return combine(made, round_number, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(CLASSES[method], "combine", fail)
        with pytest.raises(StoreError, match="cut"):
            play(broker, tmp_path / "cut", coordinate, method)
    coordinate(tmp_path / "cut").finish()
    for number in (1, 2):
        whole, cut = (adapter_path(tmp_path / name, number).read_bytes() for name in ("whole", "cut"))
        assert whole == cut
    assert whole != adapter_path(tmp_path / "whole", 0).read_bytes()


def test_a_probe_does_not_begin_with_factors_that_change_the_model(tmp_path: Path) -> None:
    prepare(tmp_path, "mqtt://127.0.0.1:1", "probe")
    config = CoordinatorConfig.load(tmp_path / "config.toml")
    with contextlib.closing(Store.open(tmp_path)) as store:
        run = open_run(tmp_path, config, store)
        start = run.adapters.read(0)
        open_run(tmp_path, config, store)
        changed = {
            name: value + 0.01 if name.endswith("lora_B.weight") else value for name, value in start.adapter.items()
        }
        given = GlobalAdapters(
            tmp_path,
            run.manifest,
            config.artifact_digest,
            rank=run.adapters.rank,
            lora_scaling=run.adapters.lora_scaling,
        )
        given.write(0, Aggregated(adapter=changed))
        with pytest.raises(ConfigError, match="has LoRA factors that change the model"):
            open_run(tmp_path, config, store)


@pytest.mark.parametrize("method", ["probe", "probe_softmax"])
def test_a_probe_trains_the_head_alone(broker: InProcess, tmp_path: Path, coordinate: Coordinate, method: str) -> None:
    prepare(tmp_path, broker.url, method)
    play(broker, tmp_path, coordinate, method)
    start, end = (decode_tensors(adapter_path(tmp_path, number).read_bytes()) for number in (0, 2))
    assert sorted(name for name in start if not np.array_equal(start[name], end[name])) == [*HEAD]
    records = Store.open(tmp_path).load_round_records()
    assert [record.was_used for record in records] == [False, True, True]
    assert {device.adapter_delta for record in records for device in record.devices} == {None}
    assert {device.num_steps for record in records for device in record.devices} == {1}


@pytest.mark.parametrize(
    ("method", "arms"),
    [("probe", ["0.0"] * 2), (THREE_AXES, ["0.0:3:batch_size=4", "0.5:2"]), (ONE_ARM, [""] * 2)],
)
def test_arms_are_written_and_kept_as_the_method_plays_them(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, method: str, arms: list[str]
) -> None:
    prepare(tmp_path, broker.url, method)
    play(broker, tmp_path, coordinate, method)
    started = [
        event for event in EventReader(tmp_path / "events.jsonl").new_events() if isinstance(event, RoundStarted)
    ]
    assert [event.arms for event in started if event.arms] == [dict(zip("ab", arms, strict=True))] * 2
    axes = method_of(method).axes
    for record in Store.open(tmp_path).load_round_records()[1:]:
        assert [axes.format((device.arm,)) for device in record.devices] == arms


def test_clipping_holds_a_device_that_goes_too_far(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    """Both devices add 0.01 to each value: the mean moves by the bound, in that direction."""
    prepare(tmp_path, broker.url, "fedit", "clip:0.001")
    play(broker, tmp_path, coordinate, "fedit")
    start, end = (decode_tensors(adapter_path(tmp_path, number).read_bytes()) for number in (0, 1))
    moved = np.concatenate([(end[name].astype(np.float64) - start[name]).ravel() for name in start])
    assert np.linalg.norm(moved) == pytest.approx(0.001, rel=1e-2)
    assert (moved > 0).all()


def test_sums_are_not_transformed(broker: InProcess, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="update_transforms apply to the change of a model, but probe averages none"):
        prepare(tmp_path, broker.url, "probe", "clip:1")


def test_sums_over_more_examples_than_a_device_registered_are_refused(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    def many(assignment: Assignment, blob: bytes) -> bytes:
        del assignment, blob
        labels = np.arange(11) % 2
        return encode_statistics(sum_features(np.ones((11, tiny.HIDDEN), np.float32), labels, 2))

    prepare(tmp_path, broker.url, "probe")
    running = coordinate(tmp_path)
    with Device(broker.url, "a", sums), Device(broker.url, "b", many, changes={"num_examples": 11}):
        running.finish()
    devices = Store.open(tmp_path).load_round_records()[1].devices
    assert {d.device_id: d.outcome for d in devices} == {"a": "accepted", "b": "rejected"}
    assert "sums over 11 examples, but its device registered 10" in next(
        d.detail for d in devices if d.device_id == "b"
    )
