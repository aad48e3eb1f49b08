"""Errors of the engine.

EngineError
├── DataError
│   ├── DataInvalidError      a line or file of examples that cannot be used
│   ├── DataEmptyError        no example at all
│   └── UnknownLabelError     a label the model has no class for
├── ArtifactCorruptedError    a file of the artifact is missing or is not what the manifest says
├── LengthError               a sequence length that the model's positions do not allow
├── InsufficientMemoryError   onnxruntime could not allocate, or the estimate says it could not
├── MissingDependencyError    raw text, but no tokenizers package
├── CheckpointError           training under way that was kept cannot be gone on with
├── DivergedError             a loss or gradient that is not finite
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
    """A file of the artifact is missing or is not the one that the manifest describes."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class LengthError(EngineError):
    """A sequence length outside what the model allows."""

    exit_code = ExitCode.USAGE


class InsufficientMemoryError(EngineError):
    """The machine has too little memory for the work."""

    exit_code = ExitCode.INSUFFICIENT_MEMORY


class MissingDependencyError(EngineError):
    """An optional package is missing that this work needs."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class CheckpointError(EngineError):
    """A checkpoint is damaged, or of another version; work begins anew without it."""


class DivergedError(EngineError):
    """Training left the finite numbers.

    Attributes:
        step: the optimizer step concerned (1-based).
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class GraphError(EngineError):
    """onnxruntime refused a graph, or failed while it ran."""
