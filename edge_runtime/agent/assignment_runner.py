"""The steps that all methods share: prepare for a run, then carry out its assignments, in the background thread."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from edge_runtime.agent.cache import ArtifactCache
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.errors import StoppedError, UnfitDataError
from edge_runtime.agent.methods.protocol import Before, Execution, Surroundings, WithHistory
from edge_runtime.agent.methods.registry import Methods
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.precheck import count_examples
from edge_runtime.agent.settings import MIN_TRAINING_RATIO, WorkSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import DataError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.errors import FedSpineError
from edge_runtime.formats.manifest import Task
from edge_runtime.system.resident import peak_rss_bytes
from edge_runtime.wire import chunks
from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.messages import Assignment, Update, Welcome

logger = logging.getLogger(__name__)

HOLDOUT_SEED: Final = 0
"""Fixed: the same file gives the same held-out examples in every round and after every restart.

They change when the number of examples in the file changes, or, for language modelling, when ``max_length`` does.
"""


@dataclasses.dataclass(slots=True)
class Progress:
    """The progress of work: written by the background thread, read by the thread that sends messages."""

    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    detail: str = ""


class AssignmentRunner:
    """An artifact, its methods and this device's examples: ready for assignments. Made by :func:`prepare`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings, fetch_s: float) -> None:
        self.artifact = artifact
        self.methods = Methods(artifact, settings)
        self._settings = settings
        self._fetch_s = fetch_s
        self._prepare_s = 0.0
        self._max_length = 0
        self._training: Dataset | None = None
        self._holdout: Dataset | None = None

    @property
    def digest(self) -> str:
        """Digest of the artifact."""
        return self.artifact.digest

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run of which this device can do no assignment; raises the errors of :meth:`Method.check_run`."""
        started = time.perf_counter()
        self.methods.of_run(welcome).check_run(welcome)
        self._prepare_s += time.perf_counter() - started

    def load(self, max_length: int) -> Dataset:
        """Examples to train on, cut at ``max_length`` tokens; the file is read again only for another ``max_length``.

        Raises:
            DataError: the file does not fit the artifact.
            MissingDependencyError: the file holds raw text, and the package tokenizers is not installed.
        """
        if self._training is None or max_length != self._max_length:
            started = time.perf_counter()
            dataset = load_examples(self._settings.data, self.artifact, max_length)
            num_holdout = min(self._settings.num_holdout, len(dataset) // MIN_TRAINING_RATIO)
            self._training, self._holdout = dataset.split_holdout(num_holdout, HOLDOUT_SEED)
            logger.info("%s", holdout_text(len(self._training), num_holdout, self.artifact.manifest.task))
            self._max_length = max_length
            self._prepare_s += time.perf_counter() - started
        return self._training

    def rebuild(self, assignment: Assignment, context: WorkContext) -> bytes | None:
        """Rebuild the payload of an assignment from this device's files; None = it must be pulled.

        Raises:
            StoppedError: it was asked to stop.
        """
        work = assignment.work
        try:
            method = self.methods.of(work)
            if isinstance(method, WithHistory):
                return method.rebuild(assignment, work, context.surroundings)
        except StoppedError:
            raise
        except (FedSpineError, OSError, MemoryError) as error:
            logger.warning("round %d: its payload is pulled: %s", assignment.key.round_number, error)
        return None

    def run(self, assignment: Assignment, blob: bytes, context: WorkContext) -> tuple[Update, bytes]:
        """Work on one assignment.

        Args:
            assignment: the work.
            blob: payload to start from.
            context: see :class:`WorkContext`.

        Returns:
            The update and its blob, empty if there is none. A small blob is inside the update too.

        Raises:
            StoppedError: it was asked to stop.
            InsufficientMemoryError: the work does not fit this device.
            DivergedError: training left the finite numbers.
            FedSpineError: anything else that is known to go wrong.
        """
        work = assignment.work
        around = context.surroundings
        task = self.methods.of(work).begin(assignment, work, blob, around)
        del blob  # `task` has decoded it: a small board cannot hold both
        context.check()
        dataset = self.load(task.max_length)
        started = context.pauses.working_s()
        execution = task.start(dataset)
        del task  # frees the decoded payload too
        prepare_s = context.pauses.working_s() - started + self._take_prepare_s()
        context.check()
        before = execution.resume(dataset) or self._evaluate(execution, context)
        trained = execution.train(dataset, before, context.on_step)
        context.check()
        after = self._evaluate(execution, context)
        made = execution.encode(context.welcome.wire_dtype) or b""
        up, down = context.traffic.settle(len(made))
        is_inline = len(made) <= limits.MAX_INLINE_BYTES
        update = Update(
            key=assignment.key,
            blob=None if is_inline else chunks.describe(made),
            inline=made if is_inline else b"",
            num_examples=len(dataset),
            train_loss=trained.mean_loss,
            measurements=Measurements(
                train_s=sum(trained.step_times_s),
                step_s_p50=_percentile(trained, 50),
                step_s_p95=_percentile(trained, 95),
                importance_s=trained.importance_s,
                fetch_s=context.fetch_s + self._take_fetch_s(),
                prepare_s=prepare_s,
                evaluate_s=before[1] + after[1],
                peak_rss_bytes=peak_rss_bytes(),
                bytes_up=up,
                bytes_down=down,
                paused_s=around.paused.seconds,
            ),
            evaluation=_evaluation(before[0], after[0]),
        )
        return update, made

    def _evaluate(self, execution: Execution, context: WorkContext) -> Before:
        """Quality on the device's own held-out examples, None if unknown, and the seconds that the evaluation took."""
        if self._holdout is None or len(self._holdout) == 0:
            return None, 0.0
        clock = context.pauses.working_s
        began = clock()
        result = execution.evaluate(self._holdout)
        return result, clock() - began

    def _take_fetch_s(self) -> float:
        fetch_s, self._fetch_s = self._fetch_s, 0.0
        return fetch_s

    def _take_prepare_s(self) -> float:
        prepare_s, self._prepare_s = self._prepare_s, 0.0
        return prepare_s


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkContext:
    """The surroundings of one assignment."""

    welcome: Welcome
    stop: threading.Event
    """Set when the work should end."""
    progress: Progress
    traffic: Traffic
    fetch_s: float
    """Time that the adapter took to arrive, seconds."""
    pull_rate: float | None = None
    """Rate of the last pulled payload, bytes a second; None = no payload was pulled."""
    checkpoints: Checkpoints
    pauses: Pauses

    def check(self) -> None:
        """Wait while the work should pause; raise if it should end.

        Raises:
            StoppedError: it should.
        """
        self.pauses.wait(self.stop, self.progress)
        if self.stop.is_set():
            msg = "stopped half-way"
            raise StoppedError(msg)

    @property
    def surroundings(self) -> Surroundings:
        """Return the attributes that a method may use; pauses are counted from this call on."""

        def say(detail: str) -> None:
            self.progress.detail = detail

        return Surroundings(
            checkpoints=self.checkpoints,
            clock=self.pauses.working_s,
            paused=self.pauses.count(),
            say=say,
            check=self.check,
            pull_rate=self.pull_rate,
        )

    def on_step(self, step: int, loss: float) -> None:
        """Note an optimizer step."""
        self.progress.step, self.progress.loss = step, loss
        logger.debug("step %d of %d: loss %r", step, self.progress.num_steps, loss)


def prepare(
    welcome: Welcome,
    cache: ArtifactCache,
    settings: WorkSettings,
    progress: Progress,
    on_bytes: Callable[[int], None],
) -> AssignmentRunner:
    """Get ready for a run: fetch the artifact, check that its work fits, load the graphs, read the examples.

    Args:
        welcome: the coordinator's message about the run.
        cache: artifacts of this device.
        settings: the owner's settings.
        progress: receives the progress.
        on_bytes: counts bytes that arrive over HTTP; raises to stop.

    Raises:
        InsufficientMemoryError: not even the cheapest arm fits.
        OrtTrainingError: there are no ort-training models for the run, or nothing to run them with.
        DataError: the examples are wrong for every artifact.
        UnfitDataError: the examples do not fit this artifact.
        FedSpineError: see :meth:`ArtifactCache.fetch`.
    """
    num_fetched = 0

    def count(num_bytes: int, num_lacking: int) -> None:
        nonlocal num_fetched
        num_fetched += num_bytes
        progress.detail = f"artifact: {num_lacking / 1e6:.1f} MB to go"
        on_bytes(num_bytes)

    started = time.perf_counter()
    artifact = cache.fetch(welcome.artifact_url, welcome.artifact_digest, count)
    fetch_s = time.perf_counter() - started if num_fetched else 0.0
    progress.detail = "preparing"
    runner = AssignmentRunner(artifact, settings, fetch_s)
    runner.check_run(welcome)
    try:
        runner.load(welcome.max_length)
    except DataError as error:
        count_examples(settings.data)  # raises if the file itself is wrong
        raise UnfitDataError(str(error)) from error
    cache.used(artifact.digest)
    progress.detail = ""
    return runner


def holdout_text(num_training: int, num_holdout: int, task: Task) -> str:
    """Return one line for the owner of the board: how many examples are trained on and how many are held out."""
    unit = "examples" if task == "text-classification" else "windows of max_length tokens"
    share = f"at most 1 in {MIN_TRAINING_RATIO}"
    return f"{num_training} {unit} to train on, {num_holdout} held back to evaluate on (--holdout, {share})"


def _percentile(trained: TrainingResult, percent: float) -> float:
    return float(np.percentile(trained.step_times_s or (0.0,), percent))


def _evaluation(before: EvaluationResult | None, after: EvaluationResult | None) -> LocalEvaluation | None:
    if before is None or after is None or not after.num_targets:
        return None
    if not (math.isfinite(before.loss) and math.isfinite(after.loss)):
        return None  # an update with a loss that is not finite would be refused
    return LocalEvaluation(
        num_targets=after.num_targets,
        loss_before=before.loss,
        loss_after=after.loss,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
    )
