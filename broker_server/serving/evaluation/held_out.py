"""The server's evaluation on held-out examples, with the same code as on devices."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from broker_server.errors import RunFailedError, TrainingDivergedError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.evaluation.parallel import evaluate_in_parts
from broker_server.serving.storage.records import EvaluationRecord
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.evaluator import EvaluationResult, Evaluator
from edge_runtime.engine.fused import FusedGraphs
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.formats.adapter import AdapterLayout, restrict
from edge_runtime.formats.payload import restrict_merged
from edge_runtime.formats.plan import Plan
from edge_runtime.zero_order.pool import moved_dense

MAX_BATCH_SIZE: Final = 16
"""Examples at a time; for causal-lm at most the training batch, since logits grow with the vocabulary."""


def finite(round_number: int, record: EvaluationRecord) -> EvaluationRecord:
    """Return the quality of a round's global adapter if its loss is finite, so that the run can go on.

    Args:
        round_number: 0 = before training.
        record: quality of the whole model.

    Raises:
        TrainingDivergedError: the loss is not finite after training.
        RunFailedError: the loss is not finite before training.
    """
    loss = record.best_known.loss
    if math.isfinite(loss):
        return record
    if round_number == 0:
        msg = f"the model's held-out loss is {loss} before training: check the model and the held-out file"
        raise RunFailedError(msg, round_number=0)
    msg = (
        f"training diverged in round {round_number}: lower the learning rate (in run.toml, or in config.toml where "
        f"there is none) and resume, which trains the round again; its held-out loss is {loss}"
    )
    raise TrainingDivergedError(msg, round_number=round_number)


def shared_sample(examples: Dataset, num_examples: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Split the examples into the sample for all rounds and the rest; the rest is empty if the sample has all.

    Args:
        examples: all held-out examples.
        num_examples: size of the sample; None = everything.
        seed: the same seed draws the same sample.
    """
    if num_examples is None or num_examples >= len(examples):
        return examples, examples.subset(np.arange(0))
    order = np.random.default_rng(seed).permutation(len(examples))
    return examples.subset(np.sort(order[:num_examples])), examples.subset(np.sort(order[num_examples:]))


class HeldOut:
    """Held-out examples and the graph that evaluates on them; one thread at a time.

    All rounds are evaluated on one sample, drawn from the seed; the last round is also evaluated on all examples.
    """

    def __init__(
        self, artifact: Artifact, path: Path, *, max_length: int, num_examples: int | None, batch_size: int, seed: int
    ) -> None:
        """Read the examples.

        Args:
            artifact: of the run.
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
        examples = load_examples(path, artifact, max_length)
        self._sample, self._rest = shared_sample(examples, num_examples, seed)
        is_classifier = artifact.manifest.task == "text-classification"
        self._batch_size = MAX_BATCH_SIZE if is_classifier else min(MAX_BATCH_SIZE, batch_size)
        self._graphs = FusedGraphs(artifact, num_threads=1)
        self._unpruned: list[Evaluator] = []

    def evaluate(
        self,
        state: Aggregated,
        rank: int,
        lora_scaling: float,
        *,
        use_all: bool,
        num_threads: int,
        plan: Plan | None = None,
    ) -> EvaluationRecord:
        """Quality of a global adapter with its merged factors.

        Args:
            state: adapter and merged factors under the full plan.
            rank: LoRA rank of the adapter.
            lora_scaling: alpha / rank.
            use_all: whether to evaluate on all examples too, beside the sample.
            num_threads: evaluators that work side by side.
            plan: evaluates the sub-model with these units; None = the whole model.

        Raises:
            EngineError: the graph cannot be loaded or run.
            TensorError: the adapter or merged factors do not fit.
        """
        started = time.perf_counter()
        manifest, full = self._artifact.manifest, Plan.full(self._artifact.manifest)
        whole = state.adapter
        if state.pool is not None:
            whole = {**whole, **moved_dense(manifest, whole, state.pool)}
        adapter = whole if plan is None else restrict(manifest, whole, plan, rank)
        evaluators = self._evaluators(state, full if plan is None else plan, rank, lora_scaling, num_threads)
        workers = [partial(self._run, evaluator, adapter, rank, lora_scaling) for evaluator in evaluators]
        result = evaluate_in_parts(self._sample, workers)
        record = _record(result, is_complete=not len(self._rest), since=started)
        if not use_all or record.is_complete:
            return record
        everything = result + evaluate_in_parts(self._rest, workers)
        return msgspec.structs.replace(record, on_all=_record(everything, is_complete=True, since=started))

    def _evaluators(
        self, state: Aggregated, plan: Plan, rank: int, lora_scaling: float, num_threads: int
    ) -> list[Evaluator]:
        """One evaluator for each thread; they share graph and weights. Evaluators of an unchanged model are reused."""
        is_unchanged = not state.merged and state.pool is None and plan == Plan.full(self._artifact.manifest)
        if is_unchanged and len(self._unpruned) == num_threads:
            return self._unpruned
        _ = self._graphs.evaluation  # opens the graph once, before threads share it
        held = restrict_merged(self._artifact.manifest, state.merged, plan)
        weights = slice_weights(self._artifact, plan, held, lora_scaling=lora_scaling, pool=state.pool)
        layout = AdapterLayout.of(self._artifact.manifest, plan, rank)
        models = [self._graphs.model(weights, layout, lora_scaling) for _ in range(num_threads)]
        evaluators = [Evaluator(self._artifact, plan, model) for model in models]
        if is_unchanged:
            self._unpruned = evaluators
        return evaluators

    def _run(
        self,
        evaluator: Evaluator,
        adapter: Mapping[str, npt.NDArray[np.float32]],
        rank: int,
        lora_scaling: float,
        dataset: Dataset,
    ) -> EvaluationResult:
        return evaluator.evaluate(adapter, rank, lora_scaling, dataset, self._batch_size)


def _record(result: EvaluationResult, *, is_complete: bool, since: float) -> EvaluationRecord:
    return EvaluationRecord(
        loss=result.loss,
        accuracy=result.accuracy,
        num_targets=result.num_targets,
        is_complete=is_complete,
        evaluate_s=time.perf_counter() - since,
    )
