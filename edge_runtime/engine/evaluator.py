"""Quality of an adapter on a dataset: the evaluation graph, batch by batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset, eval_batches
from edge_runtime.engine.model import Mode, Scorer
from edge_runtime.engine.modes import graphs_of
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Sums over a dataset; ``+`` adds the sums of its parts."""

    loss_sum: float
    """Negative log-likelihood of all targets, nats."""
    num_targets: int
    """Examples (text-classification) or predicted tokens (causal-lm)."""
    num_correct: int
    """Targets that are predicted right, by the highest score."""

    def __add__(self, other: EvaluationResult) -> EvaluationResult:
        return EvaluationResult(
            loss_sum=self.loss_sum + other.loss_sum,
            num_targets=self.num_targets + other.num_targets,
            num_correct=self.num_correct + other.num_correct,
        )

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats; NaN without a target."""
        return self.loss_sum / self.num_targets if self.num_targets else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the targets that are predicted right, in [0, 1]; NaN without a target."""
        return self.num_correct / self.num_targets if self.num_targets else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


class Evaluator:
    """Evaluates adapters under one plan: on devices, and on the server's held-out file.

    Args:
        artifact: the opened artifact.
        plan: units that stay.
        model: holds the weights under the plan.
    """

    def __init__(self, artifact: Artifact, plan: Plan, model: Scorer) -> None:
        self._artifact = artifact
        self._plan = plan
        self._model = model

    @classmethod
    def load(cls, artifact: Artifact, plan: Plan, *, num_threads: int, mode: Mode = "fused") -> Self:
        """Make an evaluator with its own graphs and weights.

        Raises:
            ArtifactCorruptedError: the base weights do not match the manifest.
        """
        graphs = graphs_of(artifact, mode, num_threads=num_threads)
        # rank and scaling are placeholders: each evaluation sets its own
        layout = AdapterLayout.of(artifact.manifest, plan, 1)
        return cls(
            artifact, plan, graphs.model(slice_weights(artifact, plan, keep_stored=graphs.keeps_stored), layout, 1.0)
        )

    def evaluate(
        self,
        adapter: Mapping[str, npt.NDArray[np.float32]],
        rank: int,
        lora_scaling: float,
        dataset: Dataset,
        batch_size: int,
        on_batch: Callable[[], None] | None = None,
    ) -> EvaluationResult:
        """Evaluate an adapter on every example once.

        Args:
            adapter: float32 tensors under (the evaluator's plan, ``rank``).
            rank: LoRA rank of ``adapter``.
            lora_scaling: alpha / rank.
            dataset: examples.
            batch_size: examples at a time, 1 or more.
            on_batch: called before each batch; raises to stop.

        Raises:
            TensorError: the adapter does not fit plan and rank.
            GraphError: onnxruntime failed, or refuses a graph.
            InsufficientMemoryError: it could not allocate.
        """
        layout = AdapterLayout.of(self._artifact.manifest, self._plan, rank)
        params = layout.flatten(adapter)
        self._model.hold(layout, lora_scaling)
        return score_all(self._model, params, dataset, batch_size, on_batch)


def score_all(
    model: Scorer,
    params: npt.NDArray[np.float32],
    dataset: Dataset,
    batch_size: int,
    on_batch: Callable[[], None] | None = None,
) -> EvaluationResult:
    """Score every example once.

    Args:
        model: holds the layout of ``params``.
        params: flat adapter, float32 ``[N]``.
        dataset: see :meth:`Evaluator.evaluate`, as the next two; raises the same.
        batch_size: examples at a time, 1 or more.
        on_batch: called before each batch; raises to stop.
    """
    losses: list[float] = []
    num_targets = num_correct = 0
    for batch in eval_batches(dataset, batch_size):
        if on_batch is not None:
            on_batch()
        loss_sum, correct = model.score(batch, params)
        losses.append(loss_sum)
        num_targets += batch.num_targets
        num_correct += correct
    return EvaluationResult(loss_sum=math.fsum(losses), num_targets=num_targets, num_correct=num_correct)
