"""Access to fields of messages that may be absent, or of several kinds."""

from __future__ import annotations

from edge_runtime.wire.messages import Assignment, BlobRef, Update
from edge_runtime.wire.work import LoraWork


def lora_of(assignment: Assignment) -> LoraWork:
    """The work of an assignment, which is LoRA's."""
    assert isinstance(assignment.work, LoraWork)
    return assignment.work


def payload_of(assignment: Assignment) -> BlobRef:
    """Return the payload of an assignment, which must have one."""
    assert assignment.payload is not None
    return assignment.payload


def blob_of(update: Update) -> BlobRef:
    """Return the blob of an update, which must have one."""
    assert update.blob is not None
    return update.blob


def loss_of(update: Update) -> float:
    """Return the training loss of an update, which must have one."""
    assert update.train_loss is not None
    return update.train_loss
