"""Training by onnxruntime-training's own API: ``CheckpointState``, ``Module``, ``Optimizer``, from exported models.

Optimizer steps equal those of the portable engine (:mod:`edge_runtime.engine.trainer`), except for rounding. All
trainable state is one flat parameter of the checkpoint, ``params``, so an adapter is set and read by one copy, and the
gradient for importance is one vector. Frozen weights are the other parameters of the checkpoint; this device's slices
replace the exported values.

Moments are inside ``Optimizer`` and cannot be set, so every assignment has its own objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.model import Mode, Scorer
from edge_runtime.engine.run import BaseRun
from edge_runtime.engine.slicing import NOTHING_MERGED, slice_weights
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Merged
from edge_runtime.formats.plan import Plan
from edge_runtime.ort_training import api
from edge_runtime.ort_training.errors import ArmNotExportedError
from edge_runtime.ort_training.models import ModelFolder
from edge_runtime.ort_training.module import TrainingModule
from edge_runtime.wire.work import HyperParameters


class OrtTrainer:
    """Trains with the models of one artifact; made once per process for all exported arms and all rounds.

    Args:
        artifact: the opened artifact.
        folder: its models.
        num_threads: threads for one operator.

    Attributes:
        mode: fused, because the activations of all blocks are in memory at once.

    Raises:
        OrtMissingError: onnxruntime-training is not installed, or not for this machine.
    """

    mode: Mode = "fused"

    def __init__(self, artifact: Artifact, folder: ModelFolder, *, num_threads: int) -> None:
        self.artifact = artifact
        self.folder = folder
        self.num_threads = num_threads
        self._api: Any = api.load("api")

    @classmethod
    def open(cls, artifact: Path, models: Path, *, num_threads: int) -> Self:
        """A trainer from an artifact's directory and a folder of models.

        Raises:
            ArtifactCorruptedError: the artifact is damaged.
            OrtTrainingError: see the class, and :meth:`ModelFolder.open`.
            WireError: a description is malformed or of another version.
        """
        opened = Artifact.open(artifact)
        return cls(opened, ModelFolder.open(models, opened), num_threads=num_threads)

    def start(
        self,
        plan: Plan,
        rank: int,
        adapter: Mapping[str, Array],
        hyper_parameters: HyperParameters,
        merged: Merged = NOTHING_MERGED,
    ) -> OrtRun:
        """Load the models of an arm with the weights and the adapter of one assignment.

        Args:
            plan: units that stay.
            rank: LoRA rank of ``adapter``.
            adapter: initial adapter, float32, under (plan, rank).
            hyper_parameters: see :class:`HyperParameters`.
            merged: factors under ``plan`` that are added to the frozen weights.

        Raises:
            ArmNotExportedError: there are no models for the arm.
            FixedHyperParametersError: the models have other hyper-parameters.
            OrtModelsError: a file of the models is damaged.
            TensorError: adapter or merged factors do not fit plan and rank.
            ArtifactCorruptedError: the base weights do not match the manifest.
            GraphError: onnxruntime-training refuses a model.
            InsufficientMemoryError: it could not allocate.
        """
        manifest = self.artifact.manifest
        models = self.folder.find(plan, rank, hyper_parameters)
        weights = slice_weights(
            self.artifact,
            plan,
            merged,
            lora_scaling=hyper_parameters.lora_scaling,
            keep_stored=[spec.name for spec in manifest.tensors],  # weights as stored: the checkpoint has float32 ones
        )
        layout = AdapterLayout.of(manifest, plan, rank)
        module = TrainingModule(self._api, self.folder.verified(models), num_threads=self.num_threads)
        module.fill(weights, layout.flatten(adapter))
        self.artifact.release()  # frees the weights that were read to fill the module
        return OrtRun(self.artifact, plan, layout, hyper_parameters, weights, module)


class OrtRun(BaseRun):
    """One assignment under way, with frozen weights in their stored type. Made by :meth:`OrtTrainer.start`."""

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        layout: AdapterLayout,
        hyper_parameters: HyperParameters,
        weights: FrozenWeights,
        module: TrainingModule,
    ) -> None:
        super().__init__(artifact, plan, layout, module.params(), hyper_parameters, weights)
        self._module = module
        module.hold(layout, hyper_parameters.lora_scaling)

    def step(self, micro_batches: Iterable[Batch], on_batch: Callable[[], None] | None = None) -> float:
        """One optimizer step.

        The learning rate of step ``s`` (1-based) is ``learning_rate * min(1, s / num_warmup_steps)``.

        Args:
            micro_batches: 1 or more; their gradients are averaged with equal weight.
            on_batch: called before each micro-batch; if it raises to stop, the adapter is as before this step.

        Returns:
            Mean of the micro-batches' losses before the step, nats.

        Raises:
            DivergedError: a loss or the gradient is not finite; the adapter is as before this step.
            GraphError: onnxruntime-training failed.
            InsufficientMemoryError: it could not allocate.
        """
        batches = list(micro_batches)  # a list, because the scale of each depends on their number
        self._module.reset_gradient()
        loss = 0.0
        for batch in batches:
            if on_batch is not None:
                on_batch()
            loss += self._module.accumulate(batch, 1.0 / len(batches))
        self._check_finite("loss", loss)
        grads = self._module.gradient()
        norm = float(np.linalg.norm(grads))
        self._check_finite("gradient norm", norm)
        self._last_params = self._module.params()
        self._module.update(self._learning_rate)
        self._last_grads = grads
        self.num_steps, self.grad_norm = self.num_steps + 1, norm
        return loss

    def prune(self, plan: Plan) -> None:
        """Refuse to shrink: widths of the models are fixed, and moments cannot be moved to another arm's models.

        Raises:
            ArmNotExportedError: always.
        """
        msg = "ort-training models have fixed widths and cannot shrink inside an assignment: use --engine portable"
        raise ArmNotExportedError(msg, digest=plan.packed.digest())

    def gradient(self) -> dict[str, Array]:
        """See :meth:`edge_runtime.engine.run.BaseRun.gradient`."""
        return self.layout.unflatten(self._last_grads)

    def adapter(self) -> dict[str, Array]:
        """The current adapter: float32 copies by name."""
        return self.layout.unflatten(self._module.params())

    @property
    def resumable(self) -> None:
        """None: moments inside ``Optimizer`` cannot be saved."""

    def _scorer(self) -> Scorer:
        """The evaluation model, which shares the parameters of the training model."""
        return self._module
