"""Errors and exit codes that every room shares.

    FedSpineError
    ├── WireError               bytes from outside break the protocol or the artifact format
    │   ├── MessageError        an MQTT payload
    │   ├── TensorError         a safetensors blob
    │   ├── PlanError           a plan that does not fit its manifest
    │   └── ManifestError       a manifest (ArtifactVersionError: of another version)
    └── one base per room       ModelError, ExportError, EngineError, LinkError, AgentError, CoordinatorError, ...

A message names the fault, the value, the expected value, the place and the next step. Attributes are for programs.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """Exit codes of FedSpine's processes. docs/exit-codes.md has a section for each; a test compares the two."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    MODEL_NOT_FOUND = 10
    MODEL_UNSUPPORTED = 11
    DATA_INVALID = 12
    DATA_EMPTY = 13
    UNKNOWN_LABEL = 14
    BROKER_UNREACHABLE = 15
    BROKER_REFUSED = 16
    ARTIFACT_CORRUPTED = 17
    ARTIFACT_VERSION = 18
    DISK_FULL = 19
    PORT_TAKEN = 20
    ARM_OUT_OF_RANGE = 21
    INSUFFICIENT_MEMORY = 22
    ARTIFACT_UNREACHABLE = 23
    RUN_FAILED = 24
    RUN_EXISTS = 25
    STATE_IN_USE = 26
    MISSING_DEPENDENCY = 27
    FLEET_IN_USE = 28
    INTERRUPTED = 130


class FedSpineError(Exception):
    """Base of every error that FedSpine raises on purpose.

    Attributes:
        exit_code: exit code of a command that this error ends.
        device_id: the device concerned, or None.
        round_number: the round concerned (1-based), or None.
        digest: SHA-256 (hex) of the artifact, blob or plan concerned, or None.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED

    def __init__(
        self,
        message: str,
        *,
        device_id: str | None = None,
        round_number: int | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(message)
        self.device_id = device_id
        self.round_number = round_number
        self.digest = digest


class WireError(FedSpineError):
    """Bytes from outside break the rules of the protocol or of the artifact format."""


class MessageError(WireError):
    """An MQTT payload cannot be decoded, has another schema version, or breaks a limit."""


class TensorError(WireError):
    """A safetensors blob is malformed, too large, not finite, or holds other tensors than expected."""


class PlanError(WireError):
    """A plan does not fit the manifest it is used with."""


class ManifestError(WireError):
    """A manifest is malformed or contradicts itself."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class ArtifactVersionError(ManifestError):
    """An artifact was written in a format version that this release does not read."""

    exit_code = ExitCode.ARTIFACT_VERSION
