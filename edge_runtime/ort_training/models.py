"""A folder of ort-training models on disk: opened, checked against the artifact, and searched for an arm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.plan import Plan
from edge_runtime.ort_training.description import (
    DESCRIPTION_FILE,
    ArmModels,
    OptimizerSettings,
    OrtModels,
    decode_ort_models,
    widths_of,
)
from edge_runtime.ort_training.errors import ArmNotExportedError, FixedHyperParametersError, OrtModelsError
from edge_runtime.system.files import measure
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork


class ModelFolder:
    """A folder that ``fedspine export --format ort-training`` wrote. Make it with :meth:`open`.

    Attributes:
        directory: path of the folder.
        models: description of the models.
    """

    def __init__(self, directory: Path, models: OrtModels) -> None:
        self.directory = directory
        self.models = models
        self._verified: set[str] = set()

    @classmethod
    def open(cls, directory: Path, artifact: Artifact) -> Self:
        """Read the description; files of an arm are checked by :meth:`verified`.

        Raises:
            OrtModelsError: there is no description, or it is for another artifact.
            ManifestError: the description is malformed.
            ArtifactVersionError: the description has another format version.
        """
        path = directory / DESCRIPTION_FILE
        try:
            with path.open("rb") as file:
                data = file.read(limits.MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            msg = (
                f"{directory} has no readable {DESCRIPTION_FILE} ({error.strerror}): "
                "give a folder that 'fedspine export --format ort-training' wrote"
            )
            raise OrtModelsError(msg) from error
        models = decode_ort_models(data)
        if models.artifact_digest != artifact.digest:
            msg = (
                f"{directory} belongs to artifact {models.artifact_digest[:12]}... ({models.model_name}), "
                f"this run trains {artifact.digest[:12]}... ({artifact.manifest.model_name}): "
                "export the models of that one with --format ort-training"
            )
            raise OrtModelsError(msg, digest=artifact.digest)
        return cls(directory, models)

    def check_arms(self, arms: Iterable[Arm]) -> tuple[Arm, ...]:
        """Return the arms of a run without models; refuse a run if no arm has models.

        Raises:
            ArmNotExportedError: no arm has models.
        """
        arms = tuple(arms)
        known = {one.arm for one in self.models.arms}
        missing = tuple(arm for arm in arms if arm not in known)
        if arms and len(missing) == len(arms):
            msg = (
                f"{self.directory} has models of {self.models.names}, but this run plays {LORA_AXES.format(arms)}: "
                "export those with --format ort-training, or start with --engine portable"
            )
            raise ArmNotExportedError(msg)
        return missing

    def check(self, work: LoraWork, plan: Plan) -> None:
        """Refuse work that these models cannot do; ``plan`` is its first plan.

        Raises:
            ArmNotExportedError: see :meth:`find`; or the plan shrinks during the work.
            FixedHyperParametersError: see :meth:`find`.
        """
        if work.prunings:
            msg = (
                "ort-training models have fixed widths and cannot shrink inside an assignment: "
                "run without a ramp (--ramp-rounds 0), or start this device with --engine portable"
            )
            raise ArmNotExportedError(msg)
        self.find(plan, work.arm.rank, work.hyper_parameters)

    def find(self, plan: Plan, rank: int, hyper_parameters: HyperParameters) -> ArmModels:
        """The models for a plan, a rank and hyper-parameters; of the plan only its widths matter.

        Raises:
            ArmNotExportedError: no models have these widths and this rank.
            FixedHyperParametersError: the models have other hyper-parameters.
        """
        wanted = OptimizerSettings.of(hyper_parameters)
        if difference := self.models.optimizer.difference(wanted):
            msg = (
                f"ort-training models have fixed hyper-parameters, and these have {difference}: "
                "export them with those of the run, or start this device with --engine portable"
            )
            raise FixedHyperParametersError(msg)
        if hyper_parameters.trainable != "all":
            msg = (
                f"ort-training models train all of an adapter, the run {hyper_parameters.trainable!r} alone: choose "
                "another rule of aggregation, or start this device with --engine portable"
            )
            raise FixedHyperParametersError(msg)
        widths = widths_of(plan)
        for one in self.models.arms:
            if one.widths == widths and one.arm.rank == rank:
                return one
        same_rank = any(one.arm.rank == rank for one in self.models.arms)
        msg = (
            f"no ort-training models of rank {rank}" + " for a plan of these widths" * same_rank + f" in "
            f"{self.directory}, which has {self.models.names}: export that arm too (with the run's --protect-first and "
            "--protect-last), or assign one of these"
        )
        raise ArmNotExportedError(msg)

    def verified(self, one: ArmModels) -> Path:
        """Directory of an arm's files; size and SHA-256 of each file are checked once.

        Raises:
            OrtModelsError: names the first file that is missing or differs.
        """
        directory = self.directory / one.directory
        if one.directory in self._verified:
            return directory
        for name, ref in one.files.items():
            try:
                found = measure(directory / name)
            except OSError as error:
                msg = f"{directory / name} cannot be read ({error.strerror}): copy the models again"
                raise OrtModelsError(msg) from error
            if found != (ref.size_bytes, ref.digest):
                msg = (
                    f"{directory / name} ({found[0]} bytes, SHA-256 {found[1][:12]}...) is not the one described "
                    f"({ref.size_bytes} bytes, {ref.digest[:12]}...): copy the models again, or export them again"
                )
                raise OrtModelsError(msg, digest=ref.digest)
        self._verified.add(one.directory)
        return directory
