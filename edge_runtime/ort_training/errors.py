"""Errors of ort-training.

OrtTrainingError (EngineError)
├── OrtMissingError             no onnxruntime-training here, or not for this machine (exit 27)
├── OrtModelsError              a folder of models that is missing, damaged, or of another artifact (exit 17)
├── ArmNotExportedError         no models for an assignment's arm (exit 21)
└── FixedHyperParametersError   an assignment asks for others than the models have (exit 2)
"""

from __future__ import annotations

from edge_runtime.engine.errors import EngineError
from edge_runtime.errors import ExitCode


class OrtTrainingError(EngineError):
    """Base of the errors of ort-training."""


class OrtMissingError(OrtTrainingError):
    """onnxruntime-training is not installed, or has nothing for this machine."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class OrtModelsError(OrtTrainingError):
    """A folder of models is missing, damaged, or belongs to another artifact."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED


class ArmNotExportedError(OrtTrainingError):
    """An arm, a plan or a pruning for which no models were exported."""

    exit_code = ExitCode.ARM_OUT_OF_RANGE


class FixedHyperParametersError(OrtTrainingError):
    """An assignment asks for hyper-parameters that are baked into the models otherwise."""

    exit_code = ExitCode.USAGE
