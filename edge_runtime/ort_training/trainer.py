"""Training by onnxruntime-training's own API: ``CheckpointState``, ``Module``, ``Optimizer``, from exported models.

The same optimizer steps as the portable engine's (:mod:`edge_runtime.engine.trainer`), to rounding. All trainable state
is one parameter of the checkpoint, ``params``, flat as everywhere else, so an adapter goes in and comes out as one
copy, and the gradient that importance needs is one vector. Frozen weights are the checkpoint's other parameters; what
was exported in them is replaced by this device's slices.

Moments live inside ``Optimizer`` and cannot be set, so every assignment has objects of its own.
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
    """Models of one artifact; made once per process and used for every arm and round that they were exported for.

    Args:
        artifact: the opened artifact.
        folder: its models.
        num_threads: threads for one operator.

    Attributes:
        mode: all blocks' activations are alive at once, as in fused mode.

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
        """Load the models of an arm, and put weights and adapter of one assignment in.

        Args:
            plan: units that stay.
            rank: LoRA rank of ``adapter``.
            adapter: where training starts, float32, under (plan, rank).
            hyper_parameters: see :class:`HyperParameters`.
            merged: factors under ``plan`` that are added to the frozen weights.

        Raises:
            ArmNotExportedError: there are no models for it.
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
    """One assignment under way; its frozen weights are as they are stored. Made by :meth:`OrtTrainer.start`."""

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
            on_batch: called before each of them; raises to stop, which leaves the adapter as it was before this step.

        Returns:
            Mean of the micro-batches' losses before the step, nats.

        Raises:
            DivergedError: a loss or the gradient is not finite; the adapter stays as it was before this step.
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
        """Refuse: widths are baked into the models, and moments cannot be moved to those of another arm.

        Raises:
            ArmNotExportedError: always.
        """
        msg = "ort-training models have fixed widths and cannot shrink inside an assignment: use --engine portable"
        raise ArmNotExportedError(msg, digest=plan.packed.digest())

    def gradient(self) -> dict[str, Array]:
        """See :meth:`edge_runtime.engine.run.BaseRun.gradient`."""
        return self.layout.unflatten(self._last_grads)

    def adapter(self) -> dict[str, Array]:
        """The adapter as it is now: float32 copies by name."""
        return self.layout.unflatten(self._module.params())

    @property
    def resumable(self) -> None:
        """Moments live inside ``Optimizer``: nothing can be kept."""

    def _scorer(self) -> Scorer:
        """The evaluation model, which shares the parameters of the training model."""
        return self._module
