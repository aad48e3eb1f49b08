"""The device's side of zero-order tuning: forward passes on both sides of perturbations, and a scalar for each pair."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.agent.checkpoints import identity_of
from edge_runtime.agent.methods.protocol import Surroundings, Task
from edge_runtime.agent.methods.zero_order.catching_up import NoiseRate
from edge_runtime.agent.methods.zero_order.forward import Estimator, Measured
from edge_runtime.agent.methods.zero_order.kept import Kept, Start
from edge_runtime.agent.methods.zero_order.steps import ScalarSteps, check_count
from edge_runtime.agent.methods.zero_order.ways import Ways
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult, score_all
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs, StagedModel
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import ZeroOrderWork
from edge_runtime.zero_order.estimator import check_epsilon
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner, apply_log
from edge_runtime.zero_order.replay import apply_step

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


class ZeroOrder:
    """Loads forward graphs alone; see :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self.kept = Kept(settings.folder_of("zero_order"))
        self._limit = settings.memory_limit_bytes
        self._pull_rate: float | None = None
        self._noise_rate: NoiseRate | None = None
        self._ways: dict[tuple[int, ...], Ways] = {}

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run that does not fit this device.

        Raises:
            InsufficientMemoryError: not even the cheapest arm fits.
        """
        rank = min((arm.rank for arm in welcome.arms), default=1)
        self._check_memory(rank, welcome.batch_size, welcome.max_length)

    def rebuild(self, assignment: Assignment, work: ZeroOrderWork, around: Surroundings) -> bytes | None:
        """Rebuild theta from that of this device's last round and the log; see :meth:`.WithHistory.rebuild`.

        Raises:
            TensorError: the stored theta is of another model, or the log is malformed.
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
        """Check the assignment and its payload; the payload is stored for :meth:`rebuild`.

        Raises:
            TensorError: the payload does not fit, the cut is outside the model, there are too many perturbations,
                float32 does not resolve epsilon, or the log does not give the preconditioner.
            InsufficientMemoryError: the work does not fit this device.
        """
        check_count(work, work.num_outer * work.num_inner)
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

    def ways(self, work: ZeroOrderWork) -> Ways:
        """The order of the upper blocks' passes; measured anew for another cut or another size."""
        size = (work.arm.rank, work.batch_size, work.max_length)
        if (work.cut, *size) not in self._ways:
            manifest = self.artifact.manifest
            self._ways = {(work.cut, *size): Ways(manifest, memory.estimate_forward_bytes(manifest, *size))}
        return self._ways[work.cut, *size]

    def _theta_of(self, blob: bytes, rank: int) -> Array:
        """The flat vector of a payload, float32 ``[N]``.

        Raises:
            TensorError: the payload holds another adapter, or more than one.
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


class ZeroOrderExecution(ScalarSteps):
    """See :class:`edge_runtime.agent.methods.protocol.Execution`.

    Theta is changed in place, step by step, and is dropped when the work is done: the device keeps theta at the start
    on its disk. Graphs are loaded when they are first run.
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
        super().__init__(method.kept, assignment, (work.num_outer, work.num_inner), work, work.seed, around)
        self._digest = method.artifact.digest
        self._asked = work
        self._theta, self._scale = vectors
        self._perturbed = self._theta.copy()
        self._parts = parts
        self._model = method.model(work)
        round_number = assignment.key.round_number
        self._estimator = Estimator(
            self._model,
            parts,
            work,
            round_number,
            scale=self._scale,
            check=self._around.check,
            ways=method.ways(work),
        )

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality at theta as it stands."""
        return score_all(self._model, self._theta, holdout, self._asked.batch_size, self._around.check)

    def identity(self, dataset: Dataset) -> str:
        """See :meth:`ScalarSteps.identity`."""
        without_log = msgspec.structs.replace(self._asked, log=())  # the server may have cut the log since
        scaled = "" if self._scale is None else digest_of(self._scale.tobytes())
        return scaled + identity_of(self._assignment, without_log, self._digest, dataset)

    def measure(self, batch: Batch, step: int) -> Measured:
        """See :meth:`ScalarSteps.measure`."""
        return self._estimator.measure(self._theta, self._perturbed, batch, step)

    def apply(self, step: int, scalars: Array) -> None:
        """See :meth:`ScalarSteps.apply`."""
        work = self._asked
        apply_step(self._theta, self._parts, work, work.seed, self._round_number, step, scalars, self._scale)


def _watched(log: Iterable[LoggedRound], around: Surroundings) -> Iterator[LoggedRound]:
    """Rounds of a log; before each one the work can pause or stop."""
    for logged in log:
        around.check()
        around.say(f"round {logged.round_number} again")
        yield logged
