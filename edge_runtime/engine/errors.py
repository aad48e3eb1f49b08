"""Errors of the engine.

EngineError
├── DataError
│   ├── DataInvalidError      a line or file of examples cannot be used
│   ├── DataEmptyError        there is no example
│   └── UnknownLabelError     the model has no class for a label
├── ArtifactCorruptedError    a file of the artifact is missing or does not match the manifest
├── LengthError               the model has too few positions for a sequence length
├── InsufficientMemoryError   onnxruntime could not allocate memory, or the estimate exceeds the limit
├── MissingDependencyError    raw text needs the package tokenizers, and it is not installed
├── CheckpointError           a checkpoint cannot be used
├── DivergedError             a loss or gradient is not finite
└── GraphError                onnxruntime refused a graph or failed while it ran
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class EngineError(FedSpineError):
    """Base of the engine's errors."""


class DataError(EngineError):
    """Examples cannot be used as they are."""

    exit_code = ExitCode.DATA_INVALID


class DataInvalidError(DataError):
    """A file cannot be read, or a line of it is not an example; the message names file and line."""


class DataEmptyError(DataError):
    """A file holds no example."""

    exit_code = ExitCode.DATA_EMPTY


class UnknownLabelError(DataError):
    """An example's label is not one of the artifact's."""

    exit_code = ExitCode.UNKNOWN_LABEL


class ArtifactCorruptedError(EngineError):
    """A file of the artifact is missing or does not match the manifest."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class LengthError(EngineError):
    """A sequence length is outside the range of the model."""

    exit_code = ExitCode.USAGE


class InsufficientMemoryError(EngineError):
    """The machine has too little memory for the work."""

    exit_code = ExitCode.INSUFFICIENT_MEMORY


class MissingDependencyError(EngineError):
    """The work needs an optional package that is not installed."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class CheckpointError(EngineError):
    """A checkpoint is damaged or of another version; the work begins anew."""


class DivergedError(EngineError):
    """A loss or gradient of training is not finite.

    Attributes:
        step: the optimizer step concerned (1-based).
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class GraphError(EngineError):
    """onnxruntime refused a graph, or failed while it ran."""
