"""Quality of an adapter on a dataset: the evaluation graph, batch by batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Dataset, eval_batches
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.engine.slicing import Weights, slice_weights
from edge_runtime.wire import names
from edge_runtime.wire.adapter import AdapterLayout
from edge_runtime.wire.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Sums over a dataset; sums of several parts may be added."""

    loss_sum: float
    """Negative log-likelihood of all targets, nats."""
    num_targets: int
    """Examples (text-classification) or predicted tokens (causal-lm)."""
    num_correct: int
    """Targets whose most likely prediction is right."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats; NaN without a target."""
        return self.loss_sum / self.num_targets if self.num_targets else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the targets predicted right, in [0, 1]; NaN without a target."""
        return self.num_correct / self.num_targets if self.num_targets else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


class Evaluator:
    """Evaluates adapters under one plan. Devices use it, and the server for its held-out file.

    Args:
        artifact: the opened artifact.
        plan: units that stay.
        num_threads: threads for one operator.
        weights: weights sliced by the same plan, to share them with a training run; None = slice here.
        graph: the loaded evaluation graph, to load it once for many plans; None = load it here.

    Raises:
        PlanError: the plan is for another model.
        ArtifactCorruptedError: the base weights are not what the manifest says.
        GraphError: onnxruntime refuses the graph.
        InsufficientMemoryError: too little memory.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        *,
        num_threads: int,
        weights: Weights | None = None,
        graph: Graph | None = None,
    ) -> None:
        self._artifact = artifact
        self._plan = plan
        if graph is None:
            graph = Graph(artifact.path(names.EVALUATION_GRAPH), num_threads=num_threads)
        self._graph = graph
        self._binding = Binding(graph)
        for name, value in (slice_weights(artifact, plan) if weights is None else weights).items():
            if name in graph.inputs:
                self._binding.bind(name, value)
        self._loss_sum = np.zeros((), np.float32)
        self._num_correct = np.zeros((), np.int64)
        self._binding.bind_output(names.LOSS_SUM, self._loss_sum)
        self._binding.bind_output(names.NUM_CORRECT, self._num_correct)

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
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        layout = AdapterLayout.of(self._artifact.manifest, self._plan, rank)
        state: dict[str, npt.NDArray[np.generic]] = {
            names.PARAMS: layout.flatten(adapter),
            names.SPLIT_SIZES: layout.sizes,
            names.RANK: np.array([rank], np.int64),
            names.LORA_SCALING: np.array(lora_scaling, np.float32),
        }
        for name, value in state.items():
            if name in self._graph.inputs:
                self._binding.bind(name, value)
        losses: list[float] = []
        num_targets = num_correct = 0
        for batch in eval_batches(dataset, batch_size):
            if on_batch is not None:
                on_batch()
            num_targets += bind_batch(self._binding, batch)
            self._binding.run()
            losses.append(float(self._loss_sum))
            num_correct += int(self._num_correct)
        return EvaluationResult(loss_sum=math.fsum(losses), num_targets=num_targets, num_correct=num_correct)


def bind_batch(binding: Binding, batch: Batch) -> int:
    """Bind a batch to a training or evaluation graph; returns its number of targets."""
    rows, targets = batch.scored()
    binding.bind(names.INPUT_IDS, batch.input_ids)
    binding.bind(names.ATTENTION_MASK, batch.attention_mask)
    binding.bind(names.ROWS, rows)
    binding.bind(names.TARGETS, targets)
    return targets.size
