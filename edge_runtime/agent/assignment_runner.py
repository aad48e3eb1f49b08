"""The work itself: get ready for a run, then one assignment after another. Runs in the background thread."""

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
from edge_runtime.agent.engines import Engines
from edge_runtime.agent.errors import StoppedError, UnfitDataError
from edge_runtime.agent.local_training import LocalTraining
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.precheck import count_examples
from edge_runtime.agent.settings import MIN_TRAINING_RATIO, WorkSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import DataError, InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.model import Mode
from edge_runtime.engine.run import Engine, Run
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import Manifest, Task
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan, uniform_num_kept
from edge_runtime.system.resident import peak_rss_bytes
from edge_runtime.wire import chunks
from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.messages import Assignment, Update, Welcome
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork

logger = logging.getLogger(__name__)

HOLDOUT_SEED: Final = 0
"""Fixed: the same file gives the same held-out examples in every round and after every restart.

They are others once the file has another number of examples, or language modelling is cut at another ``max_length``.
"""


@dataclasses.dataclass(slots=True)
class Progress:
    """How far the work is; written by the background thread, read by the one that talks."""

    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    detail: str = ""


class AssignmentRunner:
    """An artifact with its graphs loaded and this device's examples: ready for assignments. Made by :func:`prepare`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings, fetch_s: float) -> None:
        self.artifact = artifact
        self._settings = settings
        self._fetch_s = fetch_s
        self._prepare_s = 0.0
        self._max_length = 0
        self._training: Dataset | None = None
        self._holdout: Dataset | None = None
        self.engines = Engines(
            artifact,
            num_threads=settings.num_threads,
            memory_limit_bytes=settings.memory_limit_bytes,
            modes=settings.modes,
            ort_models=settings.ort_models,
        )

    @property
    def digest(self) -> str:
        """The artifact that this is for."""
        return self.artifact.digest

    def load(self, max_length: int) -> Dataset:
        """Examples to train on, cut at ``max_length``; read again only when it changes.

        Raises:
            DataError: the file does not fit the artifact.
            MissingDependencyError: raw text, and no tokenizers.
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

    def trainer(self, mode: Mode) -> Engine:
        """The graphs, loaded for a mode; those of another mode are given up."""
        started = time.perf_counter()
        engine = self.engines.load(mode)
        self._prepare_s += time.perf_counter() - started
        return engine

    def run(self, assignment: Assignment, blob: bytes, context: WorkContext) -> tuple[Update, bytes]:
        """Work on one assignment.

        Args:
            assignment: what to do.
            blob: payload to start from.
            context: see :class:`WorkContext`.

        Returns:
            The update and its payload's bytes.

        Raises:
            StoppedError: it was asked to stop.
            InsufficientMemoryError: the arm does not fit this device.
            DivergedError: training left the finite numbers.
            FedSpineError: anything else that is known to go wrong.
        """
        work = assignment.work
        if not isinstance(work, LoraWork):
            msg = f"this device has no way to do {type(work).__name__}: upgrade fedspine on it"
            raise MessageError(msg)
        hyper = work.hyper_parameters
        course = LocalTraining(assignment, work, self.digest, context.checkpoints, context.pauses)
        given, mode = self._check(work, blob)
        context.check()
        dataset = self.load(hyper.max_length)
        rank = work.arm.rank
        logger.info("round %d: %s mode, rank %d", assignment.key.round_number, mode, rank)
        trainer = self.trainer(mode)
        started = time.perf_counter()
        run = trainer.start(work.plan, rank, given.adapter, hyper, given.merged)
        del given
        prepare_s = time.perf_counter() - started + self._take_prepare_s()
        context.check()

        before = course.resume(run, dataset) or self._evaluate(trainer, run, work, context)
        trained = course.train(run, dataset, before, context.on_step, context.check)
        context.check()
        after = self._evaluate(trainer, run, work, context)
        made = _encode(run, hyper, context.welcome)
        up, down = context.traffic.settle(len(made))
        update = Update(
            key=assignment.key,
            blob=chunks.describe(made),
            num_examples=len(dataset),
            train_loss=trained.mean_loss,
            measurements=Measurements(
                **_times(trained),
                fetch_s=context.fetch_s + self._take_fetch_s(),
                prepare_s=prepare_s,
                evaluate_s=before[1] + after[1],
                peak_rss_bytes=peak_rss_bytes(),
                bytes_up=up,
                bytes_down=down,
                paused_s=course.paused_s,
            ),
            evaluation=_evaluation(before[0], after[0]),
        )
        return update, made

    def _check(self, work: LoraWork, blob: bytes) -> tuple[Payload, Mode]:
        """Look at everything that was sent before any work is done; memory is that of the first, the largest plan.

        Returns:
            What the blob holds, and the mode to train in.

        Raises:
            PlanError: a plan is for another model, or a pruning brings units back.
            TensorError: the payload does not fit.
            InsufficientMemoryError: the arm does not fit this device.
            OrtTrainingError: this device's ort-training models cannot do it.
        """
        manifest, hyper, plan = self.artifact.manifest, work.hyper_parameters, work.plan
        plan.check(manifest)
        for pruning in work.prunings:
            pruning.plan.check_within(manifest, plan)
            plan = pruning.plan
        self.engines.check(work)
        mode = self.engines.mode_for(work.plan, work.arm.rank, hyper.batch_size, hyper.max_length)
        payload = decode_payload(blob)
        check_payload(manifest, work.plan, work.arm.rank, payload, is_update=False, trainable=hyper.trainable)
        return payload, mode

    def _evaluate(
        self, trainer: Engine, run: Run, work: LoraWork, context: WorkContext
    ) -> tuple[EvaluationResult | None, float]:
        """Quality on the device's own held-out examples, None where it has none; and the seconds that took."""
        if self._holdout is None or len(self._holdout) == 0:
            return None, 0.0
        hyper, clock = work.hyper_parameters, context.pauses.working_s
        began = clock()
        result = trainer.evaluator(run).evaluate(
            run.adapter(), work.arm.rank, hyper.lora_scaling, self._holdout, hyper.batch_size, context.check
        )
        return result, clock() - began

    def _take_fetch_s(self) -> float:
        fetch_s, self._fetch_s = self._fetch_s, 0.0
        return fetch_s

    def _take_prepare_s(self) -> float:
        prepare_s, self._prepare_s = self._prepare_s, 0.0
        return prepare_s


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkContext:
    """What surrounds one assignment."""

    welcome: Welcome
    stop: threading.Event
    """Set when the work should end."""
    progress: Progress
    traffic: Traffic
    fetch_s: float
    """How long the adapter took to arrive, seconds."""
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
    """Get ready for a run: fetch the artifact, check that the cheapest arm fits, read the examples, load the graphs.

    Args:
        welcome: what the coordinator said.
        cache: artifacts of this device.
        settings: what its owner said.
        progress: where to note how far it is.
        on_bytes: counts bytes that arrive over HTTP; raises to stop.

    Raises:
        InsufficientMemoryError: not even the cheapest arm fits.
        OrtTrainingError: there are no ort-training models for the run, or nothing to run them with.
        DataError: the examples are wrong in themselves, whatever the artifact.
        UnfitDataError: they do not fit this one.
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
    mode = check_arms(runner, welcome)
    try:
        runner.load(welcome.max_length)
    except DataError as error:
        count_examples(settings.data)  # raises what is wrong with the file itself
        raise UnfitDataError(str(error)) from error
    runner.trainer(mode)
    cache.used(artifact.digest)
    progress.detail = ""
    return runner


def holdout_text(num_training: int, num_holdout: int, task: Task) -> str:
    """What is trained on and what is held back, for the owner of the board."""
    unit = "examples" if task == "text-classification" else "windows of max_length tokens"
    share = f"at most 1 in {MIN_TRAINING_RATIO}"
    return f"{num_training} {unit} to train on, {num_holdout} held back to evaluate on (--holdout, {share})"


def check_arms(runner: AssignmentRunner, welcome: Welcome) -> Mode:
    """Refuse a run of which this device cannot afford any arm; returns the mode of the first that it can.

    Raises:
        ArmNotExportedError: see :meth:`Engines.check_arms`.
        InsufficientMemoryError: not even the cheapest one fits.
    """
    runner.engines.check_arms(welcome.arms)
    refusals: list[InsufficientMemoryError] = []
    for arm in welcome.arms:
        plan = stand_in_plan(runner.artifact.manifest, arm)
        try:
            return runner.engines.mode_for(plan, arm.rank, welcome.batch_size, welcome.max_length)
        except InsufficientMemoryError as error:
            refusals.append(error)
    if not refusals:
        return runner.engines.first_mode
    msg = f"even the cheapest of {len(refusals)} arms does not fit: {refusals[-1]}"
    raise InsufficientMemoryError(msg) from refusals[-1]


def stand_in_plan(manifest: Manifest, arm: Arm) -> Plan:
    """A plan of the size that ``arm`` will have; which units stay does not matter for memory."""
    kept = {(spec.layer, spec.group): np.arange(uniform_num_kept(spec, arm.pruning_ratio)) for spec in manifest.groups}
    return Plan.from_kept(manifest, kept)


def _encode(run: Run, hyper: HyperParameters, welcome: Welcome) -> bytes:
    """What goes up: the tensors that were trained, and the scores where they were asked for."""
    adapter = run.adapter()
    trained = {name: adapter[name] for name in run.layout.trained(hyper.trainable).shapes}
    return encode_payload(Payload(adapter=trained, importance=run.importance()), welcome.wire_dtype)


def _times(trained: TrainingResult) -> dict[str, float]:
    steps = np.array(trained.step_times_s or (0.0,))
    return {
        "train_s": float(steps.sum()),
        "step_s_p50": float(np.percentile(steps, 50)),
        "step_s_p95": float(np.percentile(steps, 95)),
        "importance_s": trained.importance_s,
    }


def _evaluation(before: EvaluationResult | None, after: EvaluationResult | None) -> LocalEvaluation | None:
    if before is None or after is None or not after.num_targets:
        return None
    if not (math.isfinite(before.loss) and math.isfinite(after.loss)):
        return None  # no figure, and an update that says so would be refused
    return LocalEvaluation(
        num_targets=after.num_targets,
        loss_before=before.loss,
        loss_after=after.loss,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
    )
