"""Errors of the room ``exporter``.

ExportError                    base
├── OutputExistsError          the output directory is taken (exit 2)
├── OptionError                an option's value does not go with the model (exit 2)
├── MissingPackageError        torch or another package of the server is not installed (exit 27)
├── ModelTooLargeError         a model too large for a format (exit 11)
├── OrtExportError             models for onnxruntime-training cannot be made of an artifact (exit 17)
├── OrtGenerateError           onnxruntime-training failed while it made them (exit 1)
└── CompactError               a compact model cannot be made
    ├── CompactInputError      the run lacks a needed file, or it is damaged (exit 17)
    ├── CompactRatioError      a sparsity outside [0, 1) (exit 21)
    └── CompactParityError     the exported graph differs from PyTorch (exit 1)
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class ExportError(FedSpineError):
    """Base of the errors of ``exporter``."""


class OutputExistsError(ExportError):
    """The output directory is taken."""

    exit_code = ExitCode.USAGE


class OptionError(ExportError):
    """An option's value does not go with the model."""

    exit_code = ExitCode.USAGE


class MissingPackageError(ExportError):
    """A package of the server's installation is not there."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class ModelTooLargeError(ExportError):
    """A model is larger than the format that it is to be written in can hold."""

    exit_code = ExitCode.MODEL_UNSUPPORTED


class OrtExportError(ExportError):
    """An artifact is missing or damaged, or models for onnxruntime-training cannot be made from it."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class OrtGenerateError(ExportError):
    """onnxruntime-training failed while it made its models."""


class CompactError(ExportError):
    """A compact model cannot be made."""


class CompactInputError(CompactError):
    """The run directory, its adapter, artifact or importance is missing or damaged."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class CompactRatioError(CompactError):
    """A sparsity outside its range was asked for."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


class CompactParityError(CompactError):
    """The exported graph does not give PyTorch's logits."""
