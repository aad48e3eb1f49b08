"""An artifact becomes models for onnxruntime-training: one set of files for each arm, and their description.

Stages are traced here, where torch is; onnxruntime-training works in a child process of its own environment
(:mod:`exporter.ort_training.generate`), because it cannot share one with onnxruntime.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds.versioned import encode_description
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.errors import PlanError
from edge_runtime.formats import names, ranking
from edge_runtime.formats.adapter import AdapterLayout, initial, restrict
from edge_runtime.inference.description import file_ref
from edge_runtime.ort_training import description as ort_models
from edge_runtime.ort_training.description import ArmModels, OptimizerSettings, OrtModels
from edge_runtime.system.files import write_atomically
from edge_runtime.system.interpreter import module_command
from edge_runtime.wire.arms import LORA_AXES
from exporter.artifact.stages import trace_stages
from exporter.errors import MissingPackageError, ModelTooLargeError, OptionError, OrtGenerateError
from exporter.ort_training import generate
from exporter.ort_training.forward import forward_graph, with_values
from exporter.ort_training.source import family_of
from exporter.output import Kind, check_output, foreign_writer, written_aside

if TYPE_CHECKING:
    import onnx

    from edge_runtime.formats.manifest import Manifest
    from edge_runtime.formats.plan import Plan
    from edge_runtime.wire.work import Arm

ORT_MODELS: Final = Kind("set of ort-training models", ort_models.DESCRIPTION_FILE)
_FLOAT_BYTES: Final = 4


def export_ort_training(  # noqa: PLR0913 - each is an option of the command
    artifact: Path,
    out: Path,
    arms: Sequence[Arm],
    *,
    optimizer: OptimizerSettings,
    policy: ranking.PlanPolicy = ranking.DEFAULT_POLICY,
    seed: int = 0,
    python: Path,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> OrtModels:
    """Make the models of some arms.

    Args:
        artifact: directory of the artifact.
        out: directory to write; appears only when it is complete.
        arms: one or more; an arm that is there twice is made once.
        optimizer: hyper-parameters that are baked in.
        policy: which layers stay whole; by default the same share goes from every layer.
        seed: of the adapter that the checkpoint starts with; a device puts its own in.
        python: interpreter of the environment that scripts/setup-ort-training made.
        force: replace models that are there.
        progress: called with one line for each step.

    Returns:
        The description that was written.

    Raises:
        OutputExistsError: ``out`` exists and ``force`` is not set.
        ArtifactCorruptedError: the artifact is missing or damaged.
        OrtExportError: its configuration is.
        OptionError: the policy leaves nothing to prune.
        ModelTooLargeError: an arm's weights are beyond 2 GB.
        MissingPackageError: there is no such environment.
        OrtGenerateError: onnxruntime-training failed.
        DiskFullError: there is no space; nothing is left behind.
    """
    check_output(out, ORT_MODELS, force=force)
    opened = Artifact.open(artifact)
    plans = {arm: _plan(opened.manifest, arm, policy) for arm in arms}
    for arm, plan in plans.items():
        check_size(opened.manifest, plan, arm)
    family = family_of(artifact, opened.manifest)
    progress(f"tracing the stages of {opened.manifest.family}")
    maker = _Maker(opened, forward_graph(family, opened.manifest, trace_stages(family)), optimizer, seed, python)
    made = []
    with written_aside(out, ORT_MODELS) as directory:
        for arm, plan in plans.items():
            progress(f"making the models of {LORA_AXES.format((arm,))}")
            made.append(maker.make(directory, arm, plan))
        models = maker.describe(made)
        write_atomically(directory / ort_models.DESCRIPTION_FILE, encode_description(models))
    return models


def check_size(manifest: Manifest, plan: Plan, arm: Arm) -> None:
    """Refuse an arm whose weights are too large for onnxruntime-training.

    Raises:
        ModelTooLargeError: they are.
    """
    prunable, _ = plan.num_kept_elements(manifest)
    whole = sum(math.prod(tensor.shape) for tensor in manifest.tensors if not tensor.prune)
    num_elements = prunable + whole + AdapterLayout.of(manifest, plan, arm.rank).num_elements
    if num_elements * _FLOAT_BYTES >= ort_models.MAX_MODEL_BYTES:
        name = LORA_AXES.format((arm,))
        msg = (
            f"arm {name} of {manifest.model_name} has {num_elements * _FLOAT_BYTES / 1e9:.2f} GB of "
            f"float32 weights, and onnxruntime-training's files hold {ort_models.MAX_MODEL_BYTES / 1e9:.2f}: choose a "
            "larger pruning ratio, or train with --engine portable, which has no such limit"
        )
        raise ModelTooLargeError(msg)


def _plan(manifest: Manifest, arm: Arm, policy: ranking.PlanPolicy) -> Plan:
    """A plan of the widths that an arm has; devices choose the units."""
    alike = {(spec.layer, spec.group): np.zeros(spec.num_units, np.float32) for spec in manifest.groups}
    try:
        return ranking.plan_at(manifest, alike, arm.pruning_ratio, policy)
    except PlanError as error:
        msg = f"arm {LORA_AXES.format((arm,))} of {manifest.model_name}: {error}"
        raise OptionError(msg) from error


class _Maker:
    """Makes the models of one arm of an artifact after the other."""

    def __init__(
        self, artifact: Artifact, forward: onnx.ModelProto, optimizer: OptimizerSettings, seed: int, python: Path
    ) -> None:
        self._artifact = artifact
        self._forward = forward
        self._optimizer = optimizer
        self._seed = seed
        self._python = python
        self._producer: dict[str, str] = {}

    def make(self, directory: Path, arm: Arm, plan: Plan) -> ArmModels:
        """Write an arm's models to a folder of their own."""
        folder = directory / LORA_AXES.format((arm,)).replace(":", "-")
        folder.mkdir()
        forward = with_values(self._forward, self._values(plan, arm.rank))
        known = {entry.name for entry in forward.graph.initializer}
        frozen = tuple(spec.name for spec in self._artifact.manifest.tensors if spec.name in known)
        request = generate.Request(frozen=frozen, optimizer=self._optimizer)
        with foreign_writer(folder, 2 * forward.ByteSize()):
            (folder / generate.FORWARD).write_bytes(forward.SerializeToString(deterministic=True))
            (folder / generate.REQUEST).write_bytes(msgspec.json.encode(request))
            self._producer = _child(self._python, folder)
        for name in (generate.FORWARD, generate.REQUEST):
            (folder / name).unlink()
        files = {name: file_ref(folder / name, on_device=True) for name in ort_models.MODEL_FILES}
        return ArmModels(arm=arm, widths=ort_models.widths_of(plan), directory=folder.name, files=files)

    def describe(self, arms: Sequence[ArmModels]) -> OrtModels:
        """Return the description of the folder."""
        return OrtModels(
            format_version=ort_models.FORMAT_VERSION,
            artifact_digest=self._artifact.digest,
            model_name=self._artifact.manifest.model_name,
            optimizer=self._optimizer,
            arms=tuple(arms),
            producer=self._producer,
        )

    def _values(self, plan: Plan, rank: int) -> dict[str, npt.NDArray[Any]]:
        """Return the values of the checkpoint, and the sizes that are constants in the graphs."""
        manifest = self._artifact.manifest
        adapter = initial(manifest, self._artifact.initial(), rank, np.random.default_rng(self._seed))
        layout = AdapterLayout.of(manifest, plan, rank)
        return {
            **slice_weights(self._artifact, plan),
            names.PARAMS: layout.flatten(restrict(manifest, adapter, plan, rank)),
            names.SPLIT_SIZES: layout.sizes,
            names.RANK: np.array([rank], np.int64),
        }


def _child(python: Path, folder: Path) -> dict[str, str]:
    absolute = os.path.abspath(python)  # noqa: PTH100 - a link in an environment is not to be followed
    command = module_command(generate.__name__, str(folder.resolve()), python=absolute)
    try:
        # In the folder: onnxblock removes a file of its own, temp.onnx, from the current directory.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        msg = (
            f"{python} cannot be started ({error.strerror}): make the environment of onnxruntime-training with "
            "scripts/setup-ort-training, or name its interpreter with --ort-python"
        )
        raise MissingPackageError(msg) from error
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0 or not said:
        last = said[-1] if said else f"no word (status {done.returncode})"
        if "ModuleNotFoundError" in last or "OrtMissingError" in last:
            msg = f"{python} is not an environment of scripts/setup-ort-training ({last}): make it again"
            raise MissingPackageError(msg)
        msg = f"onnxruntime-training could not make the models: {last}"
        raise OrtGenerateError(msg)
    return msgspec.json.decode(said[-1], type=dict[str, str])
