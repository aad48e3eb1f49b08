"""The device's side of ``class_means``: sums of the frozen model's features. A board needs this, and no server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_runtime.agent.methods.probe.softmax import Examples, evaluate
from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.head import Head
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import decode_head
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import PluginWork

from .class_sums import Array, ClassSums, SumSettings


class ClassMeans:
    """Made once for an artifact; see ``Method`` in ``edge_runtime/agent/methods/protocol.py``."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self._artifact = artifact
        self._graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self._limit = settings.memory_limit_bytes

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run of which this device can do nothing, before anything is assigned."""
        self._check(Plan.full(self._artifact.manifest), welcome.batch_size, welcome.max_length)

    def begin(self, assignment: Assignment, work: PluginWork, blob: bytes, around: Surroundings) -> Task:
        """Look at everything that was sent: all of it may be wrong."""
        settings = work.settings_as(SumSettings)
        plan = work.plan.open(self._artifact.manifest)
        self._check(plan, work.batch_size, work.max_length)
        head = Head.of(self._artifact.manifest)
        given = decode_head(blob, head, with_others=True)

        def start(_: Dataset) -> Summing:
            weights = slice_weights(self._artifact, plan, keep_stored=self._graphs.keeps_stored)
            model = self._graphs.model(weights, AdapterLayout.of(self._artifact.manifest, plan, 1), 1.0)
            return Summing(model, work.batch_size, settings, (given[head.weight], given[head.bias]), around)

        return Task(max_length=work.max_length, start=start)

    def _check(self, plan: Plan, batch_size: int, max_length: int) -> None:
        Head.of(self._artifact.manifest)
        needed = memory.estimate_features_bytes(self._artifact.manifest, plan, batch_size, max_length)
        if needed > self._limit:
            msg = f"features need about {needed / 1e6:.0f} MB, this device may use {self._limit / 1e6:.0f} MB"
            raise InsufficientMemoryError(msg)


class Summing:
    """One assignment under way; see ``Execution`` in the same file."""

    def __init__(
        self,
        model: StagedModel,
        batch_size: int,
        settings: SumSettings,
        head: tuple[Array, Array],
        around: Surroundings,
    ) -> None:
        self._model = model
        self._batch_size = batch_size
        self._settings = settings
        self._head = head
        self._around = around
        self._quality: EvaluationResult | None = None
        self._made = b""

    def resume(self, dataset: Dataset) -> None:
        """It keeps no checkpoints: what was interrupted begins again."""

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality of the head that was sent, which does not change here."""
        if self._quality is None:
            self._quality = evaluate(self._examples(holdout), *self._head)
        return self._quality

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Sum the features of each class, in one step."""
        began, examples = self._around.clock(), self._examples(dataset)
        rows = examples.features.astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows *= np.minimum(1.0, self._settings.largest_norm / np.maximum(norms, 1e-12))
        one_hot = np.eye(len(self._head[1]))[examples.labels].T
        sums = (one_hot @ rows, one_hot @ (rows**2).sum(axis=1), one_hot.sum(axis=1))
        features, squares, counts = (each.astype(np.float32) for each in sums)
        self._made = ClassSums(features=features, squares=squares, counts=counts).encode()
        loss = evaluate(examples, *self._head).loss
        on_step(1, loss)
        return TrainingResult(mean_loss=loss, step_times_s=(self._around.clock() - began,), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes:
        """The reply; float32 whatever the run's type is, since sums are large."""
        return self._made

    def _examples(self, dataset: Dataset) -> Examples:
        if dataset.labels is None:
            msg = "examples have no classes, expected text-classification"
            raise TensorError(msg)
        size, features = self._batch_size, []
        for begin in range(0, len(dataset), size * memory.FEATURE_BATCHES):
            end = min(begin + size * memory.FEATURE_BATCHES, len(dataset))
            batches = [dataset.batch(np.arange(i, min(i + size, end))) for i in range(begin, end, size)]
            features += self._model.features(batches, self._around.check)
        return Examples(features=np.concatenate(features), labels=dataset.labels)
