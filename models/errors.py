"""Errors of the room ``models``.

ModelError                  base
├── ModelNotFoundError      no such directory or hub model, or files of it are missing (exit 10)
├── ModelUnsupportedError   an architecture, a task or a setting that no family handles (exit 11)
│   └── ParityError         the stages compute something else than transformers
├── ModelPackageError       a package that reads the model's files is not installed (exit 27)
└── LabelsError             class names are needed, or make no sense (exit 2)
    └── LabelsDifferError   they are not those of the checkpoint's classifier (exit 14)
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class ModelError(FedSpineError):
    """Base of the errors of ``models``."""


class ModelNotFoundError(ModelError):
    """There is no such model, or files of it are missing or unreadable."""

    exit_code = ExitCode.MODEL_NOT_FOUND


class ModelUnsupportedError(ModelError):
    """No family handles this architecture, task or setting."""

    exit_code = ExitCode.MODEL_UNSUPPORTED


class ParityError(ModelUnsupportedError):
    """The stages compute something else than transformers from the same checkpoint."""


class ModelPackageError(ModelError):
    """A package that is needed to read a model's files is not installed."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class LabelsError(ModelError):
    """Class names are needed and were not given, or make no sense."""

    exit_code = ExitCode.USAGE


class LabelsDifferError(LabelsError):
    """The class names are not those of the checkpoint's classifier."""

    exit_code = ExitCode.UNKNOWN_LABEL
