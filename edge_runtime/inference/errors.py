"""Errors of inference.

InferenceError
├── CompactModelError      a directory is not a compact model, or its files do not match the description
├── CompactVersionError    a compact model has another format version
├── WrongTaskError         the model was made for the other task
├── PromptError            a prompt leaves no room for an answer, or has no token
└── SamplingError          a temperature, top_k or number of tokens is out of range
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class InferenceError(FedSpineError):
    """Base of the errors of inference."""


class CompactModelError(InferenceError):
    """A compact model is missing, incomplete or damaged."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class CompactVersionError(InferenceError):
    """A compact model was written in a format version that this release does not read."""

    exit_code = ExitCode.ARTIFACT_VERSION


class WrongTaskError(InferenceError):
    """The model was made for the other task."""

    exit_code = ExitCode.USAGE


class PromptError(InferenceError):
    """The model cannot continue a prompt."""

    exit_code = ExitCode.USAGE


class SamplingError(InferenceError):
    """A parameter of generation is outside its range."""

    exit_code = ExitCode.USAGE
