"""Messages: golden bytes of every kind (a change of them is a change of the protocol), and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bounds import limits
from edge_runtime.bounds.plain import plain
from edge_runtime.errors import MessageError
from edge_runtime.formats.plan import KeptUnits, PackedPlan
from edge_runtime.wire.measures import Capabilities, LocalEvaluation, Measurements
from edge_runtime.wire.messages import (
    AnyMessage,
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Chunk,
    ChunkRequest,
    DeviceState,
    Failure,
    FailureReason,
    Finished,
    Hello,
    Presence,
    Register,
    Status,
    Update,
    Verdict,
    Welcome,
    decode_message,
    encode_message,
    kind_of,
)
from edge_runtime.wire.versions import SchemaVersionError, word_to
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork, PluginWork, Pruning
from tests.replies import lora_of

GOLDEN = Path(__file__).with_name("golden_messages.json")
OLD = GOLDEN.with_name("messages_of_version_1.json")

KEY = AssignmentKey(run_id="run", round_number=3, device_id="board-7", attempt=1)
BLOB = BlobRef(digest="0123456789abcdef" * 4, size_bytes=70_000, chunk_bytes=65_536)

PLUGIN = PluginWork(
    method="class_means",
    plan=PackedPlan(groups=(KeptUnits(layer=0, group="heads", num_units=12, bitmap=b"\xff\x01"),)),
    batch_size=16,
    max_length=64,
    num_steps=2,
    settings={"is_centred": True, "num_bins": 8, "largest_norm": 0.5, "form": "sums, counts"},
)

EXAMPLES: list[AnyMessage] = [
    Register(
        device_id="board-7",
        session_id="5e55",
        capabilities=Capabilities(
            architecture="aarch64",
            operating_system="Linux 6.1",
            num_cores=4,
            num_threads=2,
            memory_bytes=4_000_000_000,
            memory_limit_bytes=1_000_000_000,
            versions={"onnxruntime": "1.27.0"},
            matmul_gflops=12.5,
            memory_copy_gb_s=3.25,
        ),
        num_examples=120,
        data_bytes=30_000,
    ),
    Presence(device_id="board-7", session_id="5e55", online=False, detail="connection lost"),
    Status(
        device_id="board-7",
        session_id="5e55",
        state=DeviceState.TRAINING,
        round_number=3,
        attempt=1,
        step=4,
        num_steps=20,
        loss=0.5,
    ),
    Update(
        key=KEY,
        blob=BLOB,
        num_examples=100,
        train_loss=0.75,
        measurements=Measurements(
            train_s=10.0,
            step_s_p50=0.5,
            step_s_p95=0.625,
            fetch_s=1.0,
            prepare_s=0.25,
            evaluate_s=2.0,
            peak_rss_bytes=300_000_000,
            bytes_up=71_000,
            bytes_down=72_000,
            importance_s=0.125,
            paused_s=2.5,
        ),
        evaluation=LocalEvaluation(
            num_targets=20, loss_before=1.0, loss_after=0.5, accuracy_before=0.5, accuracy_after=0.75
        ),
    ),
    Failure(key=KEY, reason=FailureReason.ARM_INFEASIBLE, detail="too little"),
    Hello(run_id="run", session_id="c0", artifact_url="http://host:8000/artifacts/x/", artifact_digest="d" * 64),
    Welcome(
        run_id="run",
        device_id="board-7",
        artifact_url="http://host:8000/artifacts/x/",
        artifact_digest="ab" * 32,
        arms=(Arm(pruning_ratio=0.0, rank=8), Arm(pruning_ratio=0.5, rank=4)),
        batch_size=16,
        max_length=64,
    ),
    Assignment(
        key=KEY,
        deadline_s=600.0,
        payload=BLOB,
        work=LoraWork(
            arm=Arm(pruning_ratio=0.25, rank=8),
            plan=PackedPlan(groups=(KeptUnits(layer=0, group="heads", num_units=12, bitmap=b"\xff\x01"),)),
            hyper_parameters=HyperParameters(
                learning_rate=0.002,
                weight_decay=0.0,
                lora_scaling=2.0,
                max_grad_norm=1.0,
                num_warmup_steps=2,
                num_local_steps=20,
                batch_size=16,
                num_accumulation_steps=1,
                max_length=64,
                seed=7,
                importance_every_steps=5,
                trainable="lora_b",
            ),
            prunings=(
                Pruning(
                    at_step=11,
                    plan=PackedPlan(groups=(KeptUnits(layer=0, group="heads", num_units=12, bitmap=b"\x7f\x01"),)),
                ),
            ),
        ),
    ),
    Assignment(key=KEY, deadline_s=600.0, payload=BLOB, work=PLUGIN),
    Verdict(key=KEY, accepted=True),
    Cancel(key=KEY, detail="round closed"),
    Finished(run_id="run"),
    Chunk(digest=BLOB.digest, index=1, payload=b"\x00\x01\x02"),
    ChunkRequest(digest=BLOB.digest, missing=(0, 1)),
]


def name_of(message: AnyMessage) -> str:
    """The kind of a message, and whose work it is."""
    is_of_package = isinstance(message, Assignment) and message.work == PLUGIN
    return f"{kind_of(message)} of a package" if is_of_package else kind_of(message)


by_kind = pytest.mark.parametrize("message", EXAMPLES, ids=name_of)


def test_every_kind_has_an_example() -> None:
    assert {type(m) for m in EXAMPLES} == set(get_args(AnyMessage))


@by_kind
def test_bytes_are_the_golden_ones(message: AnyMessage) -> None:
    assert encode_message(message).hex() == json.loads(GOLDEN.read_text())[name_of(message)]


@by_kind
def test_golden_bytes_decode_to_the_message(message: AnyMessage) -> None:
    assert decode_message(bytes.fromhex(json.loads(GOLDEN.read_text())[name_of(message)])) == message


@by_kind
def test_unknown_fields_are_ignored(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message)) | {"from_the_future": [1, 2]}
    assert decode_message(msgspec.msgpack.encode(fields)) == message


def test_a_device_that_does_not_say_how_many_bytes_it_has_is_understood() -> None:
    (register,) = [message for message in EXAMPLES if isinstance(message, Register)]
    fields = msgspec.msgpack.decode(encode_message(register))
    del fields["data_bytes"]
    assert decode_message(msgspec.msgpack.encode(fields)) == msgspec.structs.replace(register, data_bytes=0)


def test_an_update_of_a_device_that_cannot_pause_is_understood() -> None:
    (update,) = [message for message in EXAMPLES if isinstance(message, Update)]
    fields = msgspec.msgpack.decode(encode_message(update))
    del fields["measurements"]["paused_s"]
    decoded = decode_message(msgspec.msgpack.encode(fields))
    assert isinstance(decoded, Update)
    assert decoded.measurements == msgspec.structs.replace(update.measurements, paused_s=0.0)


def test_an_update_of_a_device_that_brings_nothing_inside_is_understood() -> None:
    (update,) = [message for message in EXAMPLES if isinstance(message, Update)]
    fields = msgspec.msgpack.decode(encode_message(update))
    del fields["inline"]
    assert decode_message(msgspec.msgpack.encode(fields)) == update


def test_an_update_brings_its_bytes_inside_or_announces_them() -> None:
    (update,) = [message for message in EXAMPLES if isinstance(message, Update)]
    whole = msgspec.structs.replace(update, blob=None, inline=bytes(range(256)) * 4)
    assert decode_message(encode_message(whole)) == whole
    fields = msgspec.msgpack.decode(encode_message(update))
    for changed in ({"inline": b"x"}, {"blob": None, "inline": bytes(limits.MAX_INLINE_BYTES + 1)}):
        with pytest.raises(MessageError, match=r"expected one of the two|length"):
            decode_message(msgspec.msgpack.encode(fields | changed))


@by_kind
def test_each_missing_field_is_refused(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    optional = {f.name for f in msgspec.structs.fields(message) if not f.required}
    for name in set(fields) - optional - {"kind"}:
        with pytest.raises(MessageError, match=name):
            decode_message(msgspec.msgpack.encode({k: v for k, v in fields.items() if k != name}))


@by_kind
def test_wrong_types_are_refused(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message))
    for name in set(fields) - {"kind"}:
        with pytest.raises(MessageError):
            decode_message(msgspec.msgpack.encode(fields | {name: {"wrong": object.__name__}}))


@by_kind
def test_another_schema_version_is_refused(message: AnyMessage) -> None:
    fields = msgspec.msgpack.decode(encode_message(message)) | {"schema_version": 3}
    said = "it has schema_version 3, but this release of fedspine speaks 2.*upgrade fedspine on this side"
    with pytest.raises(SchemaVersionError, match=said):
        decode_message(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("kind", sorted(json.loads(OLD.read_text())))
def test_a_message_of_the_release_before_is_refused_with_both_versions(kind: str) -> None:
    old = bytes.fromhex(json.loads(OLD.read_text())[kind])
    with pytest.raises(SchemaVersionError, match=rf"^{kind} refused: it has schema_version 1, .* speaks 2") as caught:
        decode_message(old)
    assert "upgrade fedspine on the side that sent it" in str(caught.value)


def test_the_word_to_a_peer_of_another_release_is_in_what_that_release_logs() -> None:
    """Version 1 logs what msgspec says of a message that it refuses: the kind, where that is unknown."""
    hello = msgspec.msgpack.encode({"kind": "hello", "schema_version": 1})
    with pytest.raises(SchemaVersionError) as caught:
        decode_message(hello)
    with pytest.raises(MessageError, match="this device 1: upgrade fedspine on this device"):
        decode_message(word_to(caught.value))


@by_kind
def test_truncated_bytes_are_refused(message: AnyMessage) -> None:
    data = encode_message(message)
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode_message(data[:length])


def is_refused_or_sound(data: bytes) -> bool:
    try:
        message = decode_message(data)
    except MessageError:
        return True
    return decode_message(encode_message(message)) == message  # it can be sent on as it was read


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_decoded(data: bytes) -> None:
    assert is_refused_or_sound(data)


@given(st.sampled_from(EXAMPLES), st.data())
def test_one_changed_byte_is_refused_or_decoded(message: AnyMessage, data: st.DataObject) -> None:
    encoded = bytearray(encode_message(message))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    assert is_refused_or_sound(bytes(encoded))


@given(
    st.builds(
        Status,
        device_id=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
        session_id=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
        state=st.sampled_from(DeviceState),
        round_number=st.integers(0, limits.MOST),
        step=st.integers(0, limits.MOST),
        loss=st.none() | st.floats(-limits.MAX_FLOAT32, limits.MAX_FLOAT32),
        detail=st.text(max_size=200).map(plain),
    )
)
def test_statuses_survive_the_round_trip(message: Status) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=2000), st.integers(0, limits.MAX_BLOB_BYTES // limits.MIN_CHUNK_BYTES - 1))
def test_chunks_survive_the_round_trip(payload: bytes, index: int) -> None:
    message = Chunk(digest="ab" * 32, index=index, payload=payload)
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    "changed",
    [
        {"key.device_id": "a/b"},
        {"key.device_id": ""},
        {"key.device_id": "+"},
        {"key.device_id": "board-7\n"},
        {"key.round_number": 0},
        {"key.attempt": -1},
        {"work.arm": {"pruning_ratio": 1.0, "rank": 8}},
        {"work.arm": {"pruning_ratio": 0.0, "rank": limits.MAX_RANK + 1}},
        {"work.type": "another"},
        {"payload": {"digest": "xy", "size_bytes": 1, "chunk_bytes": 4096}},
        {"payload": {"digest": "ab" * 32, "size_bytes": limits.MAX_BLOB_BYTES + 1, "chunk_bytes": 4096}},
        {"payload": {"digest": "ab" * 32 + "\n", "size_bytes": 1, "chunk_bytes": 4096}},
        {"payload": {"digest": "ab" * 32, "size_bytes": 1, "chunk_bytes": 0}},
        {"payload": {"digest": "ab" * 32, "size_bytes": 1, "chunk_bytes": limits.MIN_CHUNK_BYTES - 1}},
        {"deadline_s": -1.0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changed: dict[str, object]) -> None:
    assignment = next(m for m in EXAMPLES if isinstance(m, Assignment))
    fields = msgspec.msgpack.decode(encode_message(assignment))
    for name, value in changed.items():
        *inside, last = name.split(".")
        (fields[inside[0]] if inside else fields)[last] = value
    with pytest.raises(MessageError):
        decode_message(msgspec.msgpack.encode(fields))


def test_a_message_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(MessageError, match="at most"):
        encode_message(Chunk(digest="ab" * 32, index=0, payload=bytes(limits.MAX_MESSAGE_BYTES)))


def test_a_payload_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(MessageError, match="refused"):
        decode_message(bytes(limits.MAX_MESSAGE_BYTES + 1))


def test_a_full_chunk_and_the_largest_request_fit_into_a_message() -> None:
    chunk = Chunk(digest="ab" * 32, index=limits.MAX_CHUNK_INDICES, payload=bytes(limits.CHUNK_BYTES))
    request = ChunkRequest(digest="ab" * 32, missing=tuple(range(limits.MAX_CHUNK_INDICES)))
    assert [decode_message(encode_message(message)) for message in (chunk, request)] == [chunk, request]


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(MessageError):
        decode_message(b"\x91" * 50_000)


def test_what_came_later_may_be_missing() -> None:
    """Bytes of a peer that knows nothing of importance and prunings."""
    assignment = next(m for m in EXAMPLES if isinstance(m, Assignment))
    fields = msgspec.msgpack.decode(encode_message(assignment))
    del fields["work"]["prunings"]
    for name in ("importance_every_steps", "trainable"):
        del fields["work"]["hyper_parameters"][name]
    decoded = decode_message(msgspec.msgpack.encode(fields))
    assert isinstance(decoded, Assignment)
    assert lora_of(decoded).prunings == ()
    assert lora_of(decoded).final_plan == lora_of(assignment).plan
    hyper = lora_of(decoded).hyper_parameters
    assert (hyper.importance_every_steps, hyper.trainable) == (0, "all")


@pytest.mark.parametrize("steps", [(0,), (21,), (5, 5), (6, 5)], ids=str)
def test_prunings_must_ascend_within_the_steps(steps: tuple[int, ...]) -> None:
    assignment = next(m for m in EXAMPLES if isinstance(m, Assignment))
    fields = msgspec.msgpack.decode(encode_message(assignment))
    work = fields["work"]
    work["prunings"] = [work["prunings"][0] | {"at_step": step} for step in steps]
    with pytest.raises(MessageError):
        decode_message(msgspec.msgpack.encode(fields))


def test_the_update_is_under_the_last_plan() -> None:
    assignment = next(m for m in EXAMPLES if isinstance(m, Assignment))
    assert lora_of(assignment).final_plan == lora_of(assignment).prunings[-1].plan


def test_hello_of_a_release_that_does_not_name_the_artifact_is_read() -> None:
    old = "84a46b696e64a568656c6c6fae736368656d615f76657273696f6e02a672756e5f6964a372756eaa73657373696f6e5f6964a26330"
    assert decode_message(bytes.fromhex(old)) == Hello(run_id="run", session_id="c0")
