"""A real device refuses what a hostile coordinator sends after a good welcome, and takes the next good run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import paho.mqtt.publish
import pytest
from onnx import TensorProto, helper

from edge_runtime.formats import names
from edge_runtime.formats.plan import PackedPlan, Plan
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import (
    AnyMessage,
    BlobRef,
    DeviceState,
    Failure,
    FailureReason,
    Presence,
    Register,
    Status,
    encode_message,
    kind_of,
)
from edge_runtime.wire.work import Arm, Pruning
from tests.edge_runtime.agent.stage import DEVICE, FLEET, Coordinator, StartDevice
from tests.edge_runtime.agent.test_unfit_runs import assert_trains, publish_bent

Change = dict[str, Any]
"""Fields of an assignment, and ``blob``: what is offered in place of the adapter."""


def full_plan(coordinator: Coordinator) -> PackedPlan:
    return Plan.full(coordinator.artifact.manifest).packed


def bent_plan(coordinator: Coordinator, **changes: Any) -> PackedPlan:
    first, *others = full_plan(coordinator).groups
    return PackedPlan(groups=(msgspec.structs.replace(first, **changes), *others))


def bent_adapter(coordinator: Coordinator, bend: Callable[[str, Any], Any]) -> bytes:
    return encode_tensors({name: bend(name, value) for name, value in coordinator.full.items()})


def raw_safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


REFUSED: dict[str, Callable[[Coordinator], Change]] = {
    "a plan of no groups": lambda _: {"plan": PackedPlan(groups=())},
    "a plan of another layer": lambda c: {"plan": bent_plan(c, layer=1)},
    "a plan of another group": lambda c: {"plan": bent_plan(c, group="tails")},
    "a plan of more units": lambda c: {"plan": bent_plan(c, num_units=8, bitmap=b"\xff")},
    "a plan that keeps nothing": lambda c: {"plan": bent_plan(c, bitmap=b"\x00")},
    "a plan whose bits are too many": lambda c: {"plan": bent_plan(c, bitmap=b"\x01" * 100)},
    "a pruning that brings units back": lambda c: {"prunings": (Pruning(at_step=2, plan=full_plan(c)),)},
    "a pruning of another model": lambda c: {"prunings": (Pruning(at_step=2, plan=bent_plan(c, layer=1)),)},
    "a rank that the adapter has not": lambda _: {"arm": Arm(pruning_ratio=0.0, rank=3)},
    "no tensors": lambda _: {"blob": encode_tensors({})},
    "one byte": lambda _: {"blob": b"x"},
    "a header of 2**63 bytes": lambda _: {"blob": b"\xff" * 7 + b"\x7f" + b"{}"},
    "a header that is no JSON": lambda _: {"blob": raw_safetensors(b"this is none")},
    "a header that is a list": lambda _: {"blob": raw_safetensors(b"[]")},
    "tensors of a type that is unknown": lambda _: {
        "blob": raw_safetensors(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234")
    },
    "tensors outside their data": lambda _: {
        "blob": raw_safetensors(b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', b"1234")
    },
    "wrong shapes": lambda c: {"blob": bent_adapter(c, lambda _, v: v[..., :1])},
    "wrong types": lambda c: {"blob": raw_safetensors(*float64(c))},
    "not finite": lambda c: {"blob": bent_adapter(c, lambda _, v: np.full_like(v, np.nan))},
    "other names": lambda c: {"blob": encode_tensors({f"x{n}": v for n, v in c.full.items()})},
    "more than was asked for": lambda c: {"blob": encode_tensors({**c.full, "more": np.zeros(3, np.float32)})},
    "so large that nothing is left": lambda c: {"blob": bent_adapter(c, lambda _, v: np.full_like(v, 1e30))},
    "a batch of 2**31": lambda _: {"hyper": {"batch_size": 2**31 - 1}},
    "texts of 2**31": lambda _: {"hyper": {"max_length": 2**31 - 1}},
    "texts longer than the model": lambda _: {"hyper": {"max_length": 4096}},
    "texts of one token": lambda _: {"hyper": {"max_length": 1}},
    "no time": lambda _: {"deadline_s": 0.0},
    "steps without end": lambda _: {
        "deadline_s": 1.0,
        "hyper": {"num_local_steps": 2**31 - 1, "num_accumulation_steps": 2**31 - 1},
    },
    "a blob that never comes": lambda _: {
        "deadline_s": 1.0,
        "payload": BlobRef(digest="ef" * 32, size_bytes=2**28, chunk_bytes=1024),
    },
    "a blob that would take all memory": lambda _: {
        "payload": BlobRef(digest="ef" * 32, size_bytes=2**29, chunk_bytes=1024)
    },
}
"""All of these are answered with a failure."""


def float64(coordinator: Coordinator) -> tuple[bytes, bytes]:
    """Header and data of the adapter in a type that the protocol does not have."""
    header, data = {}, b""
    for name, value in coordinator.full.items():
        piece = value.astype(np.float64).tobytes()
        header[name] = {"dtype": "F64", "shape": value.shape, "data_offsets": (len(data), len(data) + len(piece))}
        data += piece
    return msgspec.json.encode(header), data


def assign(coordinator: Coordinator, number: int, change: Change) -> None:
    """Send an assignment of the full model at rank 4, bent."""
    fields = {"arm": Arm(pruning_ratio=0.0, rank=4), "plan": full_plan(coordinator), **change}
    blob = fields.pop("blob", None)
    if blob is None and fields["arm"].rank != 4:
        blob = encode_tensors(coordinator.full)
    if blob is not None:
        ref = chunks.describe(blob)
        coordinator.transfers.offer(ref.digest, lambda: blob)
        fields["payload"] = ref
    if fields.get("prunings") and fields["prunings"][0].plan == full_plan(coordinator):
        fields.pop("plan"), fields.pop("arm")
    hyper = fields.pop("hyper", {})
    coordinator.assign(number, hyper=hyper, **fields)


def test_assignments_that_cannot_be_done_are_refused_one_after_the_other_and_a_good_one_is_taken(
    coordinator: Coordinator, start_device: StartDevice
) -> None:
    device = start_device(memory_limit_bytes=10**9)
    coordinator.bring_in()
    for number, (name, change) in enumerate(REFUSED.items(), start=1):
        assign(coordinator, number, change(coordinator))
        failure = coordinator.wait(Failure, round_number=number)
        assert failure.detail, name
        assert failure.reason is not FailureReason.ARTIFACT_UNREACHABLE, name
        assert "\n" not in failure.detail, name
    assert_trains(coordinator)
    assert device.thread.is_alive()
    assert coordinator.silence(Presence, 0.1), "it has not said good-bye"


def test_messages_with_any_bytes_changed_are_survived(coordinator: Coordinator, start_device: StartDevice) -> None:
    device = start_device()
    coordinator.bring_in()
    rng = random.Random(11)
    seeds = []
    say, coordinator.say = coordinator.say, lambda message: seeds.append((kind_of(message), encode_message(message)))  # type: ignore[method-assign]
    coordinator.welcome()
    coordinator.assign()
    coordinator.say = say  # type: ignore[method-assign]
    for number in range(600):
        kind, good = seeds[number % len(seeds)]
        payload = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        cut = len(payload) if rng.random() < 0.9 else rng.randrange(len(payload))
        coordinator.link.publish(topics.down(FLEET, DEVICE, kind), bytes(payload[:cut]))
    coordinator.hello()
    coordinator.wait(Register)
    assert_trains(coordinator)
    assert device.thread.is_alive()


def test_retained_messages_are_not_believed(
    coordinator: Coordinator, start_device: StartDevice, mosquitto: Any
) -> None:
    retained: list[AnyMessage] = []
    coordinator.say = retained.append  # type: ignore[method-assign,assignment]
    coordinator.welcome(run_id="retained")
    coordinator.assign(run_id="retained")
    del coordinator.say
    for message in retained:
        topic = topics.down(FLEET, DEVICE, kind_of(message))
        paho.mqtt.publish.single(topic, encode_message(message), 1, retain=True, port=mosquitto.port)
    device = start_device()
    coordinator.wait(Register)
    assert coordinator.silence(Status, 1.0), "nobody has welcomed it"
    assert_trains(coordinator)
    assert device.thread.is_alive()


# ---- graphs ----------------------------------------------------------------------------------------------------------


def edit_training(folder: Path, edit: Callable[[onnx.GraphProto], None]) -> None:
    """Change the graph that makes gradients."""
    path = folder / "training.onnx"
    model = onnx.load(path)
    edit(model.graph)
    onnx.save(model, path)


def rename_output(graph: onnx.GraphProto, name: str) -> str:
    """Give what a graph computes under ``name`` another name, so that nodes may come after it."""
    for node in graph.node:
        node.output[:] = [f"{name}.before" if one == name else one for one in node.output]
        node.input[:] = [f"{name}.before" if one == name else one for one in node.input]
    return f"{name}.before"


def other_type(graph: onnx.GraphProto) -> None:
    before = rename_output(graph, names.GRAD_ACCUM_OUT)
    graph.node.append(helper.make_node("Cast", [before], [names.GRAD_ACCUM_OUT], to=TensorProto.DOUBLE))
    (output,) = [value for value in graph.output if value.name == names.GRAD_ACCUM_OUT]
    output.type.tensor_type.elem_type = TensorProto.DOUBLE


def other_size(graph: onnx.GraphProto) -> None:
    before = rename_output(graph, names.GRAD_ACCUM_OUT)
    graph.node.append(helper.make_node("Concat", [before, before], [names.GRAD_ACCUM_OUT], axis=0))


def out_of_bounds(graph: onnx.GraphProto) -> None:
    graph.initializer.append(helper.make_tensor("far", TensorProto.INT64, [1], [10**12]))
    before = rename_output(graph, names.LOSS)
    graph.node.append(helper.make_node("Reshape", [before, "one"], ["loss.row"]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    graph.node.append(helper.make_node("Gather", ["loss.row", "far"], ["loss.far"]))
    graph.initializer.append(helper.make_tensor("none", TensorProto.INT64, [0], []))
    graph.node.append(helper.make_node("Reshape", ["loss.far", "none"], [names.LOSS]))


def all_memory(graph: onnx.GraphProto) -> None:
    graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [1], [2**46]))
    graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [], [0]))
    before = rename_output(graph, names.LOSS)
    graph.node.append(helper.make_node("Reshape", [before, "lone"], ["loss.row"]))
    graph.initializer.append(helper.make_tensor("lone", TensorProto.INT64, [1], [1]))
    graph.node.append(helper.make_node("Expand", ["loss.row", "huge"], ["loss.huge"]))
    graph.node.append(helper.make_node("Gather", ["loss.huge", "zero"], [names.LOSS]))


def endless(graph: onnx.GraphProto) -> None:
    """Double the loss 2**62 times."""
    values = [helper.make_tensor_value_info("go.in", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go.in"], ["go.out"]),
            helper.make_node("Add", ["carried", "carried"], ["doubled"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            *values,
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go.out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, []),
        ],
    )
    graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [2**62]))
    graph.initializer.append(helper.make_tensor("go", TensorProto.BOOL, [], [True]))
    before = rename_output(graph, names.LOSS)
    graph.node.append(helper.make_node("Loop", ["trips", "go", before], [names.LOSS], body=body))


@pytest.mark.parametrize(
    ("edit", "reason", "deadline_s"),
    [
        (other_type, FailureReason.INTERNAL, 60.0),
        (other_size, FailureReason.INTERNAL, 60.0),
        (out_of_bounds, FailureReason.INTERNAL, 60.0),
        (all_memory, FailureReason.ARM_INFEASIBLE, 60.0),
        (endless, FailureReason.CANCELLED, 3.0),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_that_does_not_do_what_it_should_costs_its_run_alone(
    edit: Callable[[onnx.GraphProto], None],
    reason: FailureReason,
    deadline_s: float,
    coordinator: Coordinator,
    start_device: StartDevice,
    artifact_dir: Path,
) -> None:
    device = start_device(num_holdout=0)
    coordinator.wait(Register)
    publish_bent(coordinator, artifact_dir, lambda folder: edit_training(folder, edit))
    coordinator.wait(Status, state=DeviceState.IDLE)
    coordinator.assign(run_id="bent", deadline_s=deadline_s)
    failure = coordinator.wait(Failure)
    assert failure.reason is reason, failure.detail
    assert_trains(coordinator)
    assert device.thread.is_alive()
