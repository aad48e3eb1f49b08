"""The device's side of zero-order tuning: forward passes on both sides of perturbations, and a scalar for each pair."""

from __future__ import annotations

import collections
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.agent.checkpoints import identity_of
from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.methods.zero_order.catching_up import NoiseRate
from edge_runtime.agent.methods.zero_order.forward import Estimator, mean_of
from edge_runtime.agent.methods.zero_order.kept import Kept, Start, Steps
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.bounds import limits
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult, score_all
from edge_runtime.engine.run import check_finite
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.engine.training_state import History
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import LoggedRound, ZeroOrderWork
from edge_runtime.zero_order.estimator import check_epsilon
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner, apply_log
from edge_runtime.zero_order.replay import apply_step

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

MAX_SCALARS: Final = limits.MAX_MESSAGE_BYTES // 4
"""Most scalars of one assignment, because the log must hold those of a round."""


class ZeroOrder:
    """Loads forward graphs alone; see :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self.kept = Kept(settings.folder_of("zero_order"))
        self._limit = settings.memory_limit_bytes
        self._pull_rate: float | None = None
        self._noise_rate: NoiseRate | None = None

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run that does not fit this device.

        Raises:
            InsufficientMemoryError: not even the cheapest arm fits.
        """
        rank = min((arm.rank for arm in welcome.arms), default=1)
        self._check_memory(rank, welcome.batch_size, welcome.max_length)

    def rebuild(self, assignment: Assignment, work: ZeroOrderWork, around: Surroundings) -> bytes | None:
        """Theta, from that at the start of the last round here and the rounds since; see :meth:`Method.rebuild`.

        Raises:
            TensorError: the kept theta is of another model, or the log is malformed.
        """
        start = self.kept.load_start(assignment.key.run_id)
        if start is None or assignment.payload is None:
            return None
        self._pull_rate = start.pull_rate
        if start.digest == assignment.payload.digest:
            return start.payload
        log, first = work.log, start.round_number
        if not log or log[0].round_number > first:
            logger.info("the log begins after round %d, the last one here: pulling", first)
            return None
        manifest, rank = self.artifact.manifest, work.arm.rank
        rate = around.pull_rate or start.pull_rate
        pull_s = 0.0 if rate is None else assignment.payload.size_bytes / rate
        self._noise_rate = self._noise_rate or NoiseRate.measure(work.noise)
        replay_s = self._noise_rate.replay_s(manifest, rank, log, first)
        if replay_s >= pull_s:
            logger.info("rounds since %d again take %.2f s, the payload %.2f s: pulling", first, replay_s, pull_s)
            return None
        theta = self._theta_of(start.payload, rank)
        apply_log(theta, manifest, rank, work.seed, _watched(log, around), first)
        layout = AdapterLayout.of(manifest, Plan.full(manifest), rank)
        made = encode_payload(Payload(adapter=layout.unflatten(theta)))
        if digest_of(made) != assignment.payload.digest:
            logger.warning("rounds since %d again did not lead to the payload: pulling", first)
            return None
        logger.info("payload rebuilt from that of round %d, nothing is pulled", first)
        return made

    def begin(self, assignment: Assignment, work: ZeroOrderWork, blob: bytes, around: Surroundings) -> Task:
        """Look at everything that was sent; what it starts from is kept, for :meth:`rebuild`.

        Raises:
            TensorError: the payload does not fit, the cut is outside the model, there are too many perturbations,
                float32 does not resolve epsilon, or the log does not give the preconditioner.
            InsufficientMemoryError: it does not fit this device.
        """
        num_scalars = work.num_local_steps * work.num_outer * work.num_inner
        if num_scalars > MAX_SCALARS:
            msg = f"work of {num_scalars} scalars, at most {MAX_SCALARS} go into one round"
            raise TensorError(msg)
        parts = TunedParts.of(self.artifact.manifest, work.arm.rank, work.cut)
        self._check_memory(work.arm.rank, work.batch_size, work.max_length)
        theta, scale = self._theta_of(blob, work.arm.rank), None
        if work.preconditioner is not None:
            scale = Preconditioner.after(parts, work.seed, work.log, work.preconditioner).scale
        for tensor in (*parts.lower, *parts.upper):
            least = 1.0 if scale is None else float(scale[tensor.place].min())
            check_epsilon(theta[tensor.place], least * work.epsilon)
        key = assignment.key
        begins_at = Start(
            run_id=key.run_id,
            round_number=key.round_number,
            digest=digest_of(blob) if assignment.payload is None else assignment.payload.digest,
            pull_rate=around.pull_rate or self._pull_rate,
            payload=blob,
        )
        self.kept.save_start(begins_at)

        def start(_dataset: Dataset) -> ZeroOrderExecution:
            return ZeroOrderExecution(self, assignment, work, parts, (theta, scale), around)

        return Task(max_length=work.max_length, start=start)

    def model(self, work: ZeroOrderWork) -> StagedModel:
        """The whole model with the frozen weights; its graphs are loaded when they are first run."""
        artifact, plan = self.artifact, Plan.full(self.artifact.manifest)
        layout = AdapterLayout.of(artifact.manifest, plan, work.arm.rank)
        weights = slice_weights(artifact, plan, keep_stored=self.graphs.keeps_stored)
        return self.graphs.model(weights, layout, work.lora_scaling)

    def _theta_of(self, blob: bytes, rank: int) -> Array:
        """The flat vector of a payload, float32 ``[N]``.

        Raises:
            TensorError: it holds another adapter, or more than one.
        """
        manifest, given = self.artifact.manifest, decode_payload(blob)
        layout = AdapterLayout.of(manifest, Plan.full(manifest), rank)
        check_payload(manifest, Plan.full(manifest), rank, given, is_update=False, layout=layout)
        if given.merged:
            msg = "a payload of zero-order work holds merged factors, expected the adapter alone"
            raise TensorError(msg)
        return layout.flatten(given.adapter)

    def _check_memory(self, rank: int, batch_size: int, max_length: int) -> None:
        needed = memory.estimate_forward_bytes(self.artifact.manifest, rank, batch_size, max_length)
        if needed > self._limit:
            msg = (
                f"forward passes need about {needed / 1e6:.0f} MB, this device may use {self._limit / 1e6:.0f} MB: "
                "choose a smaller batch or shorter examples, or raise --memory-limit"
            )
            raise InsufficientMemoryError(msg)


class ZeroOrderExecution:
    """See :class:`edge_runtime.agent.methods.protocol.Execution`.

    Theta is changed in place, step by step, and is no more needed when the work is done: what the device keeps is
    theta at the start, on its disk. Graphs are loaded when they are first run.
    """

    def __init__(
        self,
        method: ZeroOrder,
        assignment: Assignment,
        work: ZeroOrderWork,
        parts: TunedParts,
        vectors: tuple[Array, Array | None],
        around: Surroundings,
    ) -> None:
        self._method = method
        self._assignment = assignment
        self._round_number = assignment.key.round_number
        self._work = work
        self._theta, self._scale = vectors
        self._parts = parts
        self._around = around
        self._model = method.model(work)
        self._scalars = np.zeros((work.num_local_steps, work.num_outer, work.num_inner), np.float32)
        self._num_not_finite = 0
        self._history = History()
        self._identity = ""

    def resume(self, dataset: Dataset) -> Before | None:
        """Do the steps again whose scalars an earlier process left, without a forward pass."""
        if not self._around.checkpoints.every:
            return None
        work = self._work
        without_log = msgspec.structs.replace(work, log=())  # the server may have cut the log since
        scaled = "" if self._scale is None else digest_of(self._scale.tobytes())
        self._identity = scaled + identity_of(self._assignment, without_log, self._method.artifact.digest, dataset)
        steps = self._method.kept.load_steps(self._identity)
        if steps is None:
            return None
        done = np.frombuffer(steps.scalars, "<f4").astype(np.float32).reshape(-1, work.num_outer, work.num_inner)
        self._scalars[: len(done)] = done
        for step, scalars in enumerate(done, start=1):
            self._apply(step, scalars)
        self._num_not_finite = steps.num_not_finite
        self._history = History(losses=steps.losses, step_times_s=steps.step_times_s)
        self._around.paused.add_earlier(steps.paused_s)
        logger.info("going on after step %d of %d", len(done), work.num_local_steps)
        return steps.before, steps.before_s

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality at theta as it stands."""
        return score_all(self._model, self._theta, holdout, self._work.batch_size, self._around.check)

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """Make the steps that are lacking; each is kept, since it took many forward passes.

        Raises:
            DivergedError: no loss was finite, in no step.
        """
        work, history, clock = self._work, self._history, self._around.clock
        rng = np.random.default_rng([work.seed, self._round_number])
        drawn, num_done = batches(dataset, work.batch_size, rng), len(history.losses)
        collections.deque(itertools.islice(drawn, num_done), maxlen=0)
        estimator = Estimator(
            self._model, self._parts, work, self._round_number, scale=self._scale, check=self._around.check
        )
        perturbed = self._theta.copy()
        for step in range(num_done + 1, work.num_local_steps + 1):
            began = clock()
            measured = estimator.measure(self._theta, perturbed, next(drawn), step)
            self._apply(step, measured.scalars)
            self._scalars[step - 1] = measured.scalars
            self._num_not_finite += measured.num_not_finite
            history.losses.append(measured.loss)
            history.step_times_s.append(clock() - began)
            if math.isfinite(history.losses[-1]):
                on_step(step, history.losses[-1])
            if self._around.checkpoints.every and step < work.num_local_steps:
                self._save(step, before)
        mean_loss = mean_of(np.array(history.losses))
        check_finite("loss", mean_loss, step=work.num_local_steps, learning_rate=work.learning_rate)
        return TrainingResult(mean_loss=mean_loss, step_times_s=tuple(history.step_times_s), importance_s=0.0)

    def encode(self, dtype: WireDtype) -> bytes:
        """The scalars, float32 whatever the run's type is."""
        del dtype
        return encode_reply(self._scalars.reshape(len(self._scalars), -1), self._num_not_finite)

    def _apply(self, step: int, scalars: Array) -> None:
        apply_step(
            self._theta, self._parts, self._work, self._work.seed, self._round_number, step, scalars, self._scale
        )

    def _save(self, num_steps: int, before: Before) -> None:
        result, seconds = before
        self._method.kept.save_steps(
            Steps(
                identity=self._identity,
                scalars=self._scalars[:num_steps].astype("<f4").tobytes(),
                num_not_finite=self._num_not_finite,
                losses=self._history.losses,
                step_times_s=self._history.step_times_s,
                before=result,
                before_s=seconds,
                paused_s=self._around.paused.seconds,
            )
        )


def _watched(log: Iterable[LoggedRound], around: Surroundings) -> Iterator[LoggedRound]:
    """Rounds of a log, with a chance to stop before each."""
    for logged in log:
        around.check()
        around.say(f"round {logged.round_number} again")
        yield logged
