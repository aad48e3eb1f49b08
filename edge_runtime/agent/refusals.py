"""The consequences of errors: the reason for the coordinator, whether the process ends, and the delay if not."""

from __future__ import annotations

from edge_runtime.agent import attempts
from edge_runtime.agent.errors import StoppedError
from edge_runtime.engine import errors as engine
from edge_runtime.errors import ManifestError
from edge_runtime.link import backoff
from edge_runtime.link import errors as link
from edge_runtime.ort_training.errors import ArmNotExportedError, OrtMissingError, OrtModelsError
from edge_runtime.system.files import DiskFullError
from edge_runtime.wire.messages import Assignment, FailureReason

_REASONS: tuple[tuple[type[BaseException], FailureReason], ...] = (
    (engine.InsufficientMemoryError, FailureReason.ARM_INFEASIBLE),
    (MemoryError, FailureReason.ARM_INFEASIBLE),
    # Not a lack of memory, but a scheduler treats it alike: this arm is never possible here, a cheaper one may be.
    (ArmNotExportedError, FailureReason.ARM_INFEASIBLE),
    (link.ArtifactUnreachableError, FailureReason.ARTIFACT_UNREACHABLE),
    (link.AddressError, FailureReason.ARTIFACT_UNREACHABLE),
    (link.ArtifactCorruptedError, FailureReason.ARTIFACT_CORRUPTED),
    (engine.ArtifactCorruptedError, FailureReason.ARTIFACT_CORRUPTED),
    (OrtModelsError, FailureReason.ARTIFACT_CORRUPTED),
    (ManifestError, FailureReason.ARTIFACT_CORRUPTED),
    (DiskFullError, FailureReason.DISK_FULL),
    (engine.DivergedError, FailureReason.DIVERGED),
    (StoppedError, FailureReason.CANCELLED),
)


def reason_of(error: BaseException) -> FailureReason:
    """Return the reason to report to the scheduler for an error that ended an assignment."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return FailureReason.INTERNAL


def too_large(assignment: Assignment, memory_limit_bytes: int) -> str | None:
    """Return one line if a payload is too large to pull, else None; chunks and whole are in memory at once."""
    num_bytes = 0 if assignment.payload is None else assignment.payload.size_bytes
    if 2 * num_bytes <= memory_limit_bytes:
        return None
    return (
        f"the payload is {num_bytes / 1e6:.0f} MB, but this device may use only "
        f"{memory_limit_bytes / 1e6:.0f} MB: assign a cheaper arm, or raise --memory-limit"
    )


def is_final(error: BaseException) -> bool:
    """Return whether an error in the preparation for a run has its cause on this board, so that its owner must act.

    A server's messages or files may cause all other errors: this board reports them and goes on listening.
    """
    return isinstance(error, engine.DataError | engine.MissingDependencyError | OrtMissingError)


def largest_delay_s(error: BaseException) -> float:
    """Longest delay before the next preparation, seconds; shorter for an unreachable artifact server."""
    return backoff.LARGEST_BOUND_S if isinstance(error, link.ArtifactUnreachableError) else attempts.LARGEST_S
