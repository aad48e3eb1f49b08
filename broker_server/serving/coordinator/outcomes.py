"""Makes the record of a round, and the outcomes for the scheduler."""

from __future__ import annotations

import dataclasses

import msgspec

from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.methods.scheduler import ArmOutcome
from broker_server.serving.storage.records import DeviceRecord, MethodBytes
from edge_runtime.bounds import limits
from edge_runtime.wire.messages import Chunk, Update, encode_message
from edge_runtime.wire.work import Arm


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlayedArm:
    """The coordinator's own data about an assignment."""

    arm: Arm
    """Arm that was really trained, after the ramp; for a refused assignment the arm of its first step."""
    sparsity: float
    """Measured fraction of the prunable weights that the plan of the update removes, [0, 1)."""
    num_steps: int
    completion_s: float | None = None
    """Seconds from assignment to stored update, emulated if the fleet is; None = unknown."""
    device_class: str | None = None
    emulated_s: float | None = None
    """Seconds on the virtual clock, at most the deadline; None = nothing is emulated, or nothing was trained."""
    adapter_delta: float | None = None
    """Frobenius norm of the change of B A."""
    work: str = ""
    """Kind of the work; empty = nothing was sent."""
    not_finite: int | None = None
    """Number of scalars that were not finite; None = the method counts none."""


def device_record(participant: Participant, played: PlayedArm, update: Update | None) -> DeviceRecord:
    """One device's part in a round; ``update`` is the accepted one, or None."""
    return DeviceRecord(
        device_id=participant.device_id,
        attempt=participant.attempt,
        arm=participant.arm,
        sparsity=played.sparsity,
        outcome=(participant.outcome or Outcome.FAILED).value,
        detail=participant.detail,
        num_examples=None if update is None else update.num_examples,
        train_loss=None if update is None else update.train_loss,
        measurements=None if update is None else update.measurements,
        evaluation=None if update is None else update.evaluation,
        reason=None if participant.reason is None else participant.reason.value,
        num_steps=played.num_steps,
        completion_s=played.completion_s,
        device_class=played.device_class,
        emulated_s=played.emulated_s,
        adapter_delta=played.adapter_delta,
        work=played.work,
        method=None if update is None else MethodBytes(bytes_up=reply_bytes(update)),
        not_finite=played.not_finite,
    )


def reply_bytes(update: Update) -> int:
    """Payload bytes of a reply as the device sent it: the message with its inline result, or the message and chunks.

    Args:
        update: the stored form, with the header of the blob.
    """
    blob = update.blob
    if blob is None:
        return len(encode_message(update))
    if blob.size_bytes <= limits.MAX_INLINE_BYTES:
        return len(encode_message(msgspec.structs.replace(update, blob=None, inline=bytes(blob.size_bytes))))
    envelope = (
        len(encode_message(Chunk(digest=blob.digest, index=0, payload=bytes(blob.chunk_bytes)))) - blob.chunk_bytes
    )
    return len(encode_message(update)) + blob.size_bytes + blob.num_chunks * envelope


def arm_outcome(round_number: int, participant: Participant, played: PlayedArm, update: Update | None) -> ArmOutcome:
    """Return the outcome of one assignment for a scheduler."""
    return ArmOutcome(
        round_number=round_number,
        device_id=participant.device_id,
        arm=played.arm,
        sparsity=played.sparsity,
        outcome=participant.outcome or Outcome.FAILED,
        reason=participant.reason,
        num_examples=None if update is None else update.num_examples,
        train_loss=None if update is None else update.train_loss,
        measurements=None if update is None else update.measurements,
        evaluation=None if update is None else update.evaluation,
        completion_s=played.completion_s,
        adapter_delta=played.adapter_delta,
        num_local_steps=played.num_steps,
    )
