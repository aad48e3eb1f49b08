"""Runs that go wrong by their numbers: none of it may leave a state that no coordinator can go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from broker_server.errors import RunFailedError, TrainingDivergedError
from broker_server.methods.lora.method import Lora
from broker_server.serving.coordinator import run_context as parts
from broker_server.serving.evaluation.held_out import finite
from broker_server.serving.storage.adapters import adapter_path
from broker_server.serving.storage.events import EventReader, UpdatesDiscarded
from broker_server.serving.storage.records import EvaluationRecord
from broker_server.serving.storage.store import Store
from edge_runtime.errors import ExitCode
from edge_runtime.formats.peft_format import KEY_PREFIX
from edge_runtime.formats.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.messages import Assignment
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.test_coordinator import devices_of
from tests.replies import lora_of

Coordinate = Callable[[Path], Coordination]


def filled(value: float) -> fleet.Script:
    """Every element is ``value``."""
    return lambda _a, blob: encode_tensors({k: np.full_like(v, value) for k, v in decode_tensors(blob).items()})


@pytest.mark.parametrize(
    ("value", "wire_dtype"), [(1e20, "float32"), (1e3, "float16"), (6e4, "float16"), (3e38, "float32")]
)
def test_huge_update_is_refused_and_the_run_goes_on(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, value: float, wire_dtype: str
) -> None:
    fleet.config(tmp_path, broker.url, wire_dtype=wire_dtype)
    running = coordinate(tmp_path)
    with Device(broker.url, "a") as a, Device(broker.url, "b", filled(value)) as b:
        running.finish()
    assert (a.verdicts(), b.verdicts()) == ({1: True, 2: True}, {1: False, 2: False})
    record = devices_of(tmp_path, 1)["b"]
    assert (record.outcome, record.reason) == ("rejected", "diverged")
    assert "is too large" in record.detail


@pytest.mark.parametrize(("value", "wire_dtype"), [(1e20, "float32"), (3e38, "float32"), (6e4, "float16")])
def test_aggregate_of_no_use_is_discarded_and_the_run_fails_now_and_when_it_is_resumed(
    broker: InProcess,
    tmp_path: Path,
    coordinate: Coordinate,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    wire_dtype: str,
) -> None:
    """As after updates that an earlier release accepted: nothing refuses them at the door."""
    monkeypatch.setattr(Lora, "check", lambda *_: None)
    fleet.config(tmp_path, broker.url, wire_dtype=wire_dtype)
    running = coordinate(tmp_path)
    failure = pytest.raises(RunFailedError, match=r"^no update of the 2 rounds could be used, .*aggregation failed")
    with Device(broker.url, "a"), Device(broker.url, "b", filled(value)), failure:
        running.finish()
    discarded = [e for e in EventReader(tmp_path / "events.jsonl").new_events() if isinstance(e, UpdatesDiscarded)]
    assert [e.round_number for e in discarded] == [1, 2]
    assert "aggregation failed" in discarded[0].detail
    start, end = (decode_tensors(adapter_path(tmp_path, n).read_bytes()) for n in (0, 2))
    for name, tensor in start.items():
        np.testing.assert_array_equal(end[name], tensor)
    assert [r.was_used for r in Store.open(tmp_path).load_round_records()] == [False, False, False]
    with pytest.raises(RunFailedError, match="no update of the 2 rounds could be used"):
        coordinate(tmp_path).finish(timeout_s=20)


# ---- a loss that is not finite ---------------------------------------------------------------------------------------


class Losses:
    """Evaluates to the next of some losses."""

    def __init__(self, *losses: float) -> None:
        self._losses = iter(losses)

    def evaluate(self, *_: object, **__: object) -> EvaluationRecord:
        return EvaluationRecord(loss=next(self._losses), accuracy=0.5, num_targets=9, is_complete=True, evaluate_s=0.1)


Measure = Callable[..., None]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """A function that says what the next evaluations come to."""

    def say(*losses: float) -> None:
        monkeypatch.setattr(parts, "_open_held_out", lambda *_: Losses(*losses))

    return say


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_diverged_round_ends_the_run_with_one_line_and_is_trained_again(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, measured: Measure, loss: float
) -> None:
    config = fleet.config(tmp_path, broker.url, num_devices=1)
    measured(1.0, 0.9, loss)
    running = coordinate(tmp_path)
    with Device(broker.url, "a") as a:
        with pytest.raises(TrainingDivergedError, match=r"^training diverged in round 2: lower the learning rate") as e:
            running.finish()
        assert e.value.exit_code is ExitCode.RUN_FAILED
        store = Store.open(tmp_path)
        assert [r.round_number for r in store.load_round_records()] == [0, 1]
        assert store.load_open_round() is None
        assert not adapter_path(tmp_path, 2).exists()
        slower = dataclasses.replace(config, training=dataclasses.replace(config.training, learning_rate=1e-5))
        (tmp_path / "config.toml").write_text(slower.to_toml())
        measured(0.8)
        coordinate(tmp_path).finish()
        asked = [m for m in a.received if isinstance(m, Assignment) and m.key.round_number == 2]
    rates = dict.fromkeys(lora_of(m).hyper_parameters.learning_rate for m in asked)
    assert list(rates) == [pytest.approx(2e-4), pytest.approx(1e-6)]
    records = Store.open(tmp_path).load_round_records()
    assert [r.evaluation.loss for r in records if r.evaluation is not None] == [1.0, 0.9, 0.8]


def test_the_last_round_diverged_if_the_loss_on_all_examples_is_not_finite() -> None:
    on_all = EvaluationRecord(loss=float("nan"), accuracy=0.5, num_targets=9, is_complete=True, evaluate_s=0.1)
    record = EvaluationRecord(loss=1.0, accuracy=0.5, num_targets=5, is_complete=False, evaluate_s=0.1, on_all=on_all)
    with pytest.raises(TrainingDivergedError, match=r"round 3: .*its held-out loss is nan"):
        finite(3, record)


def test_model_that_is_broken_from_the_start_is_not_called_diverged(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, measured: Measure
) -> None:
    fleet.config(tmp_path, broker.url)
    measured(float("nan"))
    with pytest.raises(RunFailedError, match="held-out loss is nan before training"):
        coordinate(tmp_path).finish()
    assert Store.open(tmp_path).load_round_records() == []


def test_sub_model_without_a_finite_loss_is_left_out_of_the_record(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, measured: Measure
) -> None:
    fleet.config(tmp_path, broker.url, num_devices=1, sparsity=0.5)
    measured(1.0, 0.9, 0.8, float("nan"))
    running = coordinate(tmp_path)
    with Device(broker.url, "a"):
        running.finish()
    last = Store.open(tmp_path).load_round_records()[-1]
    assert last.evaluation is not None
    assert (last.evaluation.loss, last.sparse) == (0.8, None)


# ---- the best round in place of the last -----------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "expected"), [("best", 1), ("last", None)])
def test_best_round_is_kept_where_that_is_asked_for(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, measured: Measure, keep: str, expected: int | None
) -> None:
    fleet.config(tmp_path, broker.url, num_devices=1, keep=keep)
    measured(1.0, 0.7, 0.9, 0.7)  # before training, rounds 1 and 2, and round 1 again, on all examples
    running = coordinate(tmp_path)
    with Device(broker.url, "a"):
        running.finish()
    last = Store.open(tmp_path).load_round_records()[-1]
    assert (last.kept and last.kept.round_number) == expected
    peft = safetensors.numpy.load_file(tmp_path / "adapters" / "peft" / "adapter_model.safetensors")
    rounds = [decode_tensors(adapter_path(tmp_path, number).read_bytes()) for number in (1, 2)]
    first, second = (sum(float(np.abs(value).sum()) for value in one.values()) for one in rounds)
    assert first != second
    total = sum(float(np.abs(peft[KEY_PREFIX + name]).sum()) for name in rounds[0])  # it holds frozen modules too
    assert total == pytest.approx(first if expected == 1 else second, rel=1e-6)
