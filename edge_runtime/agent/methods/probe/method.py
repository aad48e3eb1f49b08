"""The device's side of the probe: features of the frozen model, once for each example, and an exactly trained head."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.methods.probe.feature_store import FeatureStore, Known, digests_of
from edge_runtime.agent.methods.probe.softmax import Examples, Regression, evaluate
from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.run import check_finite
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.head import Head
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import decode_head, encode_head, encode_statistics, sum_features
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import ProbeWork

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class Probe:
    """Loads forward graphs alone, for new examples only; see :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self.features = settings.folder_of("probe")
        self._limit = settings.memory_limit_bytes

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run whose model has no head to train, or does not fit this device.

        Raises:
            TensorError: the model has no head to train.
            InsufficientMemoryError: the whole model does not fit.
        """
        Head.of(self.artifact.manifest)
        self._check_memory(Plan.full(self.artifact.manifest), welcome.batch_size, welcome.max_length)

    def begin(self, assignment: Assignment, work: ProbeWork, blob: bytes, around: Surroundings) -> Task:
        """Check the assignment and its payload.

        Raises:
            PlanError: the plan is for another model.
            TensorError: the model has no head to train, or the payload does not hold the head.
            InsufficientMemoryError: the model does not fit this device.
        """
        del assignment
        manifest = self.artifact.manifest
        plan = work.plan.open(manifest)
        head = Head.of(manifest)
        given = decode_head(blob, head, with_others=True)
        self._check_memory(plan, work.batch_size, work.max_length)

        def start(dataset: Dataset) -> ProbeExecution:
            execution = ProbeExecution(self, work, plan, head, given, around)
            execution.compute(dataset)
            return execution

        return Task(max_length=work.max_length, start=start)

    def _check_memory(self, plan: Plan, batch_size: int, max_length: int) -> None:
        needed = memory.estimate_features_bytes(self.artifact.manifest, plan, batch_size, max_length)
        if needed > self._limit:
            msg = (
                f"features need about {needed / 1e6:.0f} MB, but this device may use only {self._limit / 1e6:.0f} MB: "
                "choose a smaller batch or shorter examples, or raise --memory-limit"
            )
            raise InsufficientMemoryError(msg)


class ProbeExecution:
    """See :class:`edge_runtime.agent.methods.protocol.Execution`."""

    def __init__(
        self, method: Probe, work: ProbeWork, plan: Plan, head: Head, given: dict[str, Array], around: Surroundings
    ) -> None:
        self._method = method
        self._work = work
        self._plan = plan
        self._head = head
        self._weight, self._bias = given[head.weight], given[head.bias]
        self._around = around
        self._model: StagedModel | None = None
        self._sums: bytes | None = None
        digest = method.artifact.digest
        self._store = FeatureStore(method.features, digest, work.plan.digest(), work.max_length, head.num_features)
        self._known: Known = self._store.load()

    def resume(self, dataset: Dataset) -> None:
        """There are no checkpoints: most of the time is spent on features, and those are stored."""
        del dataset

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality of the head as it is."""
        return evaluate(self._examples(holdout), self._weight, self._bias)

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Train the head, or compute the sums from which the server solves the head.

        Raises:
            DivergedError: the loss left the finite numbers.
            TensorError: features are too large to be summed exactly.
        """
        del before
        examples, clock = self._examples(dataset), self._around.clock
        began = clock()
        if self._work.form == "statistics":
            self._sums = encode_statistics(sum_features(examples.features, examples.labels, self._head.num_classes))
            loss = evaluate(examples, self._weight, self._bias).loss
            on_step(1, loss)
            return TrainingResult(mean_loss=loss, step_times_s=(clock() - began,), importance_s=0.0)
        work = self._work
        regression = Regression(examples, self._weight, self._bias, l2=work.l2, learning_rate=work.learning_rate)
        times, losses = [], []
        for step in range(1, work.num_steps + 1):
            self._around.check()
            started = clock()
            losses.append(regression.step())
            check_finite("loss", losses[-1], step=step, learning_rate=work.learning_rate)
            times.append(clock() - started)
            on_step(step, losses[-1])
        self._weight, self._bias = regression.head
        mean_loss = float(np.mean(losses))
        return TrainingResult(mean_loss=mean_loss, step_times_s=tuple(times), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes:
        """The head, or the sums."""
        if self._sums is not None:
            return self._sums
        return encode_head(self._head, {self._head.weight: self._weight, self._head.bias: self._bias}, dtype)

    # ---- features ----------------------------------------------------------------------------------------------------

    def _examples(self, dataset: Dataset) -> Examples:
        digests = self.compute(dataset)
        if dataset.labels is None:
            msg = "examples have no classes, expected text-classification"
            raise TensorError(msg)
        return Examples(features=np.stack([self._known[digest] for digest in digests]), labels=dataset.labels)

    def compute(self, dataset: Dataset) -> list[bytes]:
        """Compute the features of new examples; features that are done are stored even if the work is stopped.

        A batch holds examples of one length, without padding. It never holds a single example, because onnxruntime has
        other kernels for that. So the features of an example do not depend on the rest of its batch, to the last bit.
        """
        digests = digests_of(dataset)
        new = {digest: index for index, digest in enumerate(digests) if digest not in self._known}
        if not new:
            return digests
        order = np.array(sorted(new.values(), key=lambda index: -dataset.lengths[index]), np.int64)
        num_done = 0
        try:
            batches = _of_one_length(dataset, order, self._work.batch_size)
            for group in _together(dataset, batches, self._work.batch_size * self._work.max_length):
                taken = [dataset.batch(np.resize(indices, max(2, indices.size))) for indices in group]
                features = self._loaded().features(taken, self._around.check)
                for indices, rows in zip(group, features, strict=True):
                    self._known |= {digests[i]: row for i, row in zip(indices, rows, strict=False)}
                    num_done += len(indices)
                self._around.say(f"features: {num_done} of {len(new)} examples")
        finally:
            if num_done:
                self._store.save(self._known)
        self._around.say("")
        return digests

    def _loaded(self) -> StagedModel:
        if self._model is None:
            artifact, plan, graphs = self._method.artifact, self._plan, self._method.graphs
            weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
            self._model = graphs.model(weights, AdapterLayout.of(artifact.manifest, plan, 1), 1.0)
        return self._model


def _of_one_length(dataset: Dataset, order: Int64, batch_size: int) -> Iterator[Int64]:
    """Examples in order, at most ``batch_size`` of one length at a time."""
    for _, same in itertools.groupby(order, key=lambda index: dataset.lengths[index]):
        indices = np.fromiter(same, np.int64)
        for begin in range(0, indices.size, batch_size):
            yield indices[begin : begin + batch_size]


def _together(dataset: Dataset, batches: Iterator[Int64], batch_tokens: int) -> Iterator[list[Int64]]:
    """Groups of batches whose hidden states are in memory together: about the tokens of a few full batches."""
    group: list[Int64] = []
    num_tokens = 0
    for indices in batches:
        size = max(2, indices.size) * int(dataset.lengths[indices[0]])
        if group and num_tokens + size > memory.FEATURE_BATCHES * batch_tokens:
            yield group
            group, num_tokens = [], 0
        group.append(indices)
        num_tokens += size
    yield group
