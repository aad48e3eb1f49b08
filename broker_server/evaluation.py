"""The server's own evaluation, on held-out examples, with exactly the code that devices run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_server.parallel_evaluation import evaluate_in_parts
from broker_server.records import EvaluationRecord
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.evaluator import EvaluationResult, Evaluator
from edge_runtime.engine.session import Graph
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.wire import names
from edge_runtime.wire.plan import Plan

MAX_BATCH_SIZE: Final = 16
"""Examples at a time; for causal-lm at most the training batch, since logits grow with the vocabulary."""


class HeldOut:
    """Held-out examples and the graph that evaluates on them; one thread at a time.

    Rounds are compared on one sample, drawn once from the seed; the last round uses everything.
    """

    def __init__(
        self, artifact: Artifact, path: Path, *, max_length: int, num_examples: int | None, batch_size: int, seed: int
    ) -> None:
        """Read the examples.

        Args:
            artifact: what is trained.
            path: JSON lines.
            max_length: tokens of an example.
            num_examples: size of the sample; None = everything.
            batch_size: training batch.
            seed: of the sample.

        Raises:
            DataError: the file cannot be used; see :func:`edge_runtime.engine.data.load_examples`.
            LengthError: ``max_length`` is beyond the model's positions.
        """
        self._artifact = artifact
        self._all = load_examples(path, artifact, max_length)
        self._sample = self._all
        if num_examples is not None and num_examples < len(self._all):
            order = np.random.default_rng(seed).permutation(len(self._all))
            self._sample = self._all.subset(np.sort(order[:num_examples]))
        is_classifier = artifact.manifest.task == "text-classification"
        self._batch_size = MAX_BATCH_SIZE if is_classifier else min(MAX_BATCH_SIZE, batch_size)
        self._evaluators: list[Evaluator] = []

    def evaluate(
        self,
        adapter: Mapping[str, npt.NDArray[np.float32]],
        rank: int,
        lora_scaling: float,
        *,
        use_all: bool,
        num_threads: int,
    ) -> EvaluationRecord:
        """Quality of a full adapter.

        Raises:
            EngineError: the graph cannot be loaded or run.
            TensorError: the adapter does not fit.
        """
        started = time.perf_counter()
        self._load(num_threads)
        dataset = self._all if use_all else self._sample
        result = evaluate_in_parts(
            dataset,
            [partial(self._run, evaluator, adapter, rank, lora_scaling) for evaluator in self._evaluators],
        )
        return EvaluationRecord(
            loss=result.loss,
            accuracy=result.accuracy,
            num_targets=result.num_targets,
            is_complete=len(dataset) == len(self._all),
            evaluate_s=time.perf_counter() - started,
        )

    def _load(self, num_threads: int) -> None:
        """Make one evaluator for each thread, on first use; they share graph and weights."""
        if self._evaluators:
            return
        plan = Plan.full(self._artifact.manifest)
        weights = slice_weights(self._artifact, plan)
        graph = Graph(self._artifact.path(names.EVALUATION_GRAPH), num_threads=1)
        self._evaluators = [
            Evaluator(self._artifact, plan, num_threads=1, weights=weights, graph=graph) for _ in range(num_threads)
        ]

    def _run(
        self,
        evaluator: Evaluator,
        adapter: Mapping[str, npt.NDArray[np.float32]],
        rank: int,
        lora_scaling: float,
        dataset: Dataset,
    ) -> EvaluationResult:
        return evaluator.evaluate(adapter, rank, lora_scaling, dataset, self._batch_size)
