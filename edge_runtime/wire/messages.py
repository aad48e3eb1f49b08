"""Every message of the protocol: msgspec structs, msgpack-encoded, tagged by kind.

Unknown fields are ignored, so a newer peer may add some; missing fields and wrong types are refused. Delivery is at
least once, and effectively once by the :class:`AssignmentKey`. docs/wire.md has the sequence.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import (
    Count,
    Digest,
    FileBytes,
    Loss,
    Name,
    Positive,
    Seconds,
    Text,
    Url,
)
from edge_runtime.bounds.plain import escaped, plain
from edge_runtime.errors import MessageError
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.measures import Capabilities, LocalEvaluation, Measurements
from edge_runtime.wire.versions import check_version
from edge_runtime.wire.work import Arm, Work, WorkType

HEARTBEAT_S: Final = 15.0
"""Interval of a device's heartbeats, unless a welcome says otherwise."""

SCHEMA_VERSION: Final = 2

ChunkIndex = Annotated[int, msgspec.Meta(ge=0, lt=limits.MAX_BLOB_BYTES // limits.MIN_CHUNK_BYTES)]

_MAX_REASON: Final = 300
"""Longest text of msgspec about a refused message, characters."""


class DeviceState(enum.StrEnum):
    """The state of a device; every transition is published as a :class:`Status`."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"
    UPLOADING = "uploading"
    DONE = "done"
    OFFLINE = "offline"


class FailureReason(enum.StrEnum):
    """Reason why a device refused an assignment or gave it up; a scheduler learns from it."""

    ARM_INFEASIBLE = "arm_infeasible"
    """The device can do neither this arm nor a costlier one: too little memory, or no models for its engine."""
    ARTIFACT_UNREACHABLE = "artifact_unreachable"
    ARTIFACT_CORRUPTED = "artifact_corrupted"
    DISK_FULL = "disk_full"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class Message(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=lambda name: name.lower(), omit_defaults=False
):
    """Base of all messages."""

    schema_version: Literal[2] = SCHEMA_VERSION


class AssignmentKey(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Identity of an assignment in all messages about it; it makes delivery effectively once."""

    run_id: Name
    round_number: Positive
    device_id: Name
    attempt: Positive


class BlobRef(msgspec.Struct, frozen=True, kw_only=True):
    """Header of a blob that follows in chunks: digest, size and chunk size."""

    digest: Digest
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_BLOB_BYTES)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=limits.MIN_CHUNK_BYTES, le=limits.MAX_MESSAGE_BYTES)]

    @property
    def num_chunks(self) -> int:
        """Number of chunks, the last one possibly shorter."""
        return -(-self.size_bytes // self.chunk_bytes)


# ---- device -> coordinator -------------------------------------------------------------------------------------------


class Register(Message, frozen=True, kw_only=True):
    """A device announces itself and its capabilities: after every connect, and after every Hello of the coordinator."""

    device_id: Name
    session_id: Name
    """Random for each start of a process: it distinguishes a restart from a reconnect."""
    capabilities: Capabilities
    num_examples: Count
    """Number of lines of the data file."""
    data_bytes: FileBytes = 0
    """Size of the data file; 0 = unknown."""


class Presence(Message, frozen=True, kw_only=True):
    """The last will (``online`` false), and a clean good-bye."""

    device_id: Name
    session_id: Name
    online: bool
    detail: Text = ""


class Status(Message, frozen=True, kw_only=True):
    """A change of a device's state, progress of its work, or a heartbeat (an unchanged state)."""

    device_id: Name
    session_id: Name
    state: DeviceState
    round_number: Count = 0
    attempt: Count = 0
    step: Count = 0
    num_steps: Count = 0
    loss: Loss | None = None
    detail: Text = ""


class Update(Message, frozen=True, kw_only=True):
    """The device's reply to an assignment; a small result is inside, a larger one follows in chunks."""

    key: AssignmentKey
    blob: BlobRef | None = None
    """None = the result of the work is inside, or there is none."""
    inline: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_INLINE_BYTES)] = b""
    """Result of the work, if it has at most MAX_INLINE_BYTES; there is no ``blob`` then."""
    num_examples: Positive
    """Examples of the device (its weight in the aggregation)."""
    train_loss: Loss | None
    """Mean loss over the local steps; None = the work has no loss."""
    measurements: Measurements
    evaluation: LocalEvaluation | None = None

    def __post_init__(self) -> None:
        """Refuse an update with both a blob and an inline result.

        Raises:
            ValueError: it has both.
        """
        if self.inline and self.blob is not None:
            msg = "update brings its bytes inside and announces a blob, expected one of the two"
            raise ValueError(msg)


class Failure(Message, frozen=True, kw_only=True):
    """The device refused an assignment or gave it up."""

    key: AssignmentKey
    reason: FailureReason
    detail: Text


# ---- coordinator -> device -------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """To all devices: a coordinator announces itself (after every connect); devices answer with Register."""

    run_id: Name
    session_id: Name
    artifact_url: Url | None = None
    """See :class:`Welcome`; with it a board can be checked before it registers."""
    artifact_digest: Digest | None = None


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to Register: the information that the device needs before its first assignment."""

    run_id: Name
    device_id: Name
    artifact_url: Url
    """URL of the folder that holds ``manifest.json``, with a slash at the end."""
    artifact_digest: Digest
    arms: Annotated[tuple[Arm, ...], msgspec.Meta(max_length=limits.MAX_ARMS)]
    """Arms that may be assigned; a device without memory for the cheapest arm reports this and refuses assignments."""
    batch_size: Positive
    max_length: Positive
    work: WorkType = "lora"
    """Kind of work of later assignments: a device prepares for it, and loads only the graphs that it needs."""
    device_method: Name | None = None
    """Name of the method for work of type ``plugin``; a device without this method refuses the run at once."""
    wire_dtype: WireDtype = "float32"
    heartbeat_s: Seconds = HEARTBEAT_S

    def __post_init__(self) -> None:
        """Refuse work of type ``plugin`` without the name of its method.

        Raises:
            ValueError: the name is missing.
        """
        if self.work == "plugin" and self.device_method is None:
            msg = "work 'plugin' without device_method: expected the name of a method"
            raise ValueError(msg)


class Assignment(Message, frozen=True, kw_only=True):
    """The work for one device in one round; the payload to start from follows in chunks."""

    key: AssignmentKey
    deadline_s: Seconds
    """Time that the device has, from the arrival of this message."""
    payload: BlobRef | None = None
    """Payload that the work starts from; None = the work needs none."""
    work: Work


class Verdict(Message, frozen=True, kw_only=True):
    """The coordinator's decision on an update; the device may delete the update now."""

    key: AssignmentKey
    accepted: bool
    detail: Text = ""


class Cancel(Message, frozen=True, kw_only=True):
    """The round went on without this device (its deadline passed): the device stops the work."""

    key: AssignmentKey
    detail: Text = ""


class Finished(Message, frozen=True, kw_only=True):
    """To all devices: the run is over; a device with ``--exit-when-finished`` ends."""

    run_id: Name
    detail: Text = ""


# ---- both ways -------------------------------------------------------------------------------------------------------


class Chunk(Message, frozen=True, kw_only=True):
    """One piece of a blob; ``index`` counts from 0."""

    digest: Digest
    index: ChunkIndex
    payload: Annotated[bytes, msgspec.Meta(max_length=limits.MAX_MESSAGE_BYTES)]


class ChunkRequest(Message, frozen=True, kw_only=True):
    """The receiver of a blob asks for the chunks it lacks."""

    digest: Digest
    missing: Annotated[tuple[ChunkIndex, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_CHUNK_INDICES)]


AnyMessage = (
    Register
    | Presence
    | Status
    | Update
    | Failure
    | Hello
    | Welcome
    | Assignment
    | Verdict
    | Cancel
    | Finished
    | Chunk
    | ChunkRequest
)

_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


def kind_of(message: Message) -> str:
    """Tag of a message: the last level of its topic."""
    return type(message).__name__.lower()


def device_of(message: AnyMessage, otherwise: str) -> str:
    """The device that sends or receives a message; ``otherwise`` if the message names none."""
    named: str = getattr(getattr(message, "key", message), "device_id", otherwise)
    return named


def encode_message(message: AnyMessage, max_bytes: int = limits.MAX_MESSAGE_BYTES) -> bytes:
    """Bytes of a message.

    Raises:
        MessageError: the message is larger than ``max_bytes``.
    """
    data = _encoder.encode(message)
    if len(data) > max_bytes:
        msg = f"{kind_of(message)} message is {len(data)} bytes, at most {max_bytes} may be published"
        raise MessageError(msg)
    return data


def decode_message(data: bytes) -> AnyMessage:
    """Parse a payload from outside; text for people is escaped (:mod:`edge_runtime.bounds.plain`).

    Raises:
        MessageError: the payload is too large or not msgpack, or has an unknown kind, a missing field, a wrong type, or
            a value outside its range.
        SchemaVersionError: the message has another schema version.
    """
    if len(data) > limits.MAX_MESSAGE_BYTES:
        msg = f"message of {len(data)} bytes refused: at most {limits.MAX_MESSAGE_BYTES}"
        raise MessageError(msg)
    try:
        message: AnyMessage = escaped(_decoder.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_version(data, SCHEMA_VERSION)
        msg = f"message refused: {plain(str(error))[:_MAX_REASON]}"
        raise MessageError(msg) from error
    return message
