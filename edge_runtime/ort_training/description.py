"""The description of a folder of ort-training models (``ort-training.json``).

Models of onnxruntime-training have fixed widths, rank and hyper-parameters of the optimizer, so a folder holds one set
of files for each arm, beside the artifact. Weights are not fixed: a device loads its own slices and the assignment's
adapter, so one set serves every plan of its widths.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Beta, Decay, Digest, Factor, Name, NumUnits, Short, Version, Versions
from edge_runtime.bounds.versioned import decode_description
from edge_runtime.errors import ManifestError
from edge_runtime.formats.manifest import FileRef
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm, HyperParameters

FORMAT_VERSION: Final = 1
"""Version of the format; a folder of another version is refused."""
DESCRIPTION_FILE: Final = "ort-training.json"

# Files of an arm, as ``onnxruntime.training.artifacts.generate_artifacts`` names them.
TRAINING_MODEL: Final = "training_model.onnx"
EVALUATION_MODEL: Final = "eval_model.onnx"
OPTIMIZER_MODEL: Final = "optimizer_model.onnx"
CHECKPOINT: Final = "checkpoint"
MODEL_FILES: Final = (TRAINING_MODEL, EVALUATION_MODEL, OPTIMIZER_MODEL, CHECKPOINT)

MAX_MODEL_BYTES: Final = 1 << 31
"""Largest model, float32 weights included, bytes: a limit of protobuf and of the checkpoint's format."""


class OptimizerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Fixed hyper-parameters of an optimizer model. Defaults are those of a run."""

    weight_decay: Decay = 0.0
    max_grad_norm: Factor | None = 1.0
    """Clipping by global norm; None = off."""
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Factor = 1e-8

    @classmethod
    def of(cls, hyper_parameters: HyperParameters) -> Self:
        """The settings that an assignment asks for."""
        return cls(**{name: getattr(hyper_parameters, name) for name in cls.__struct_fields__})

    def difference(self, other: OptimizerSettings) -> str:
        """Describe the differences from other settings, for people; empty if they are equal.

        >>> OptimizerSettings().difference(OptimizerSettings(weight_decay=0.1))
        'weight_decay 0.0, not 0.1'
        """
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__)
        return ", ".join(f"{name} {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs)


class ArmModels(msgspec.Struct, frozen=True, kw_only=True):
    """The models of one arm."""

    arm: Arm
    widths: Annotated[tuple[NumUnits, ...], msgspec.Meta(max_length=limits.MAX_GROUPS)]
    """Units kept of each group, in the order of the artifact's manifest; see :func:`widths_of`."""
    directory: Name
    """Name of the arm's folder, within the folder of all models."""
    files: Annotated[dict[Name, FileRef], msgspec.Meta(max_length=len(MODEL_FILES))]


class OrtModels(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a folder."""

    format_version: Version
    artifact_digest: Digest
    """Digest of the artifact of the models."""
    model_name: Short
    """Name of the source model, for people."""
    optimizer: OptimizerSettings
    arms: Annotated[tuple[ArmModels, ...], msgspec.Meta(max_length=limits.MAX_ARMS)]
    producer: Versions
    """Versions of the packages that made the models."""

    @property
    def names(self) -> str:
        """The arms, for people: ``0.0:8,0.5:4``."""
        return LORA_AXES.format(tuple(models.arm for models in self.arms))


def widths_of(plan: Plan) -> tuple[int, ...]:
    """Number of units that a plan keeps of each group."""
    return tuple(units.size for units in plan.units.values())


def decode_ort_models(data: bytes) -> OrtModels:
    """Parse and check the bytes of ``ort-training.json``.

    Raises:
        ManifestError: not JSON, a missing field, a wrong type, or contents that contradict each other.
        ArtifactVersionError: written in another format version.
    """
    models = decode_description(
        data,
        OrtModels,
        version=FORMAT_VERSION,
        file=DESCRIPTION_FILE,
        what="folder of ort-training models",
        remedy="export the models again",
    )
    _check(models)
    return models


def _check(models: OrtModels) -> None:
    for one in models.arms:
        is_plain = bool(one.directory) and not one.directory.startswith(".") and not {"/", "\\"} & set(one.directory)
        if not is_plain or sorted(one.files) != sorted(MODEL_FILES):
            msg = f"{DESCRIPTION_FILE} lists impossible files: {one.directory!r} {sorted(one.files)}"
            raise ManifestError(msg)
    if not models.arms:
        msg = f"{DESCRIPTION_FILE} lists no arm: export the models again"
        raise ManifestError(msg)
