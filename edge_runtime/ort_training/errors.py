"""Errors of ort-training.

OrtTrainingError (EngineError)
├── OrtMissingError             onnxruntime-training is not installed, or not available for this machine (exit 27)
├── OrtModelsError              a folder of models is missing, damaged, or of another artifact (exit 17)
├── ArmNotExportedError         there are no models for an assignment's arm (exit 21)
└── FixedHyperParametersError   an assignment asks for other hyper-parameters than the models have (exit 2)
"""

from __future__ import annotations

from edge_runtime.engine.errors import EngineError
from edge_runtime.errors import ExitCode


class OrtTrainingError(EngineError):
    """Base of the errors of ort-training."""


class OrtMissingError(OrtTrainingError):
    """onnxruntime-training is not installed, or not available for this machine."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class OrtModelsError(OrtTrainingError):
    """A folder of models is missing, damaged, or belongs to another artifact."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class ArmNotExportedError(OrtTrainingError):
    """No models were exported for an arm, a plan or a pruning."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


class FixedHyperParametersError(OrtTrainingError):
    """An assignment asks for other hyper-parameters than the fixed ones of the models."""

    exit_code = ExitCode.USAGE
