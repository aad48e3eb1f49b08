"""The device's side of tuning all weights along the noise of a pool of seeds, by forward passes alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_runtime.agent.checkpoints import identity_of
from edge_runtime.agent.methods.protocol import Surroundings, Task
from edge_runtime.agent.methods.zero_order.forward import Measured, mean_of
from edge_runtime.agent.methods.zero_order.kept import Kept
from edge_runtime.agent.methods.zero_order.steps import ScalarSteps, check_count
from edge_runtime.agent.methods.zero_order.whole_weights import WholeWeights
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine import memory
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult, score_all
from edge_runtime.engine.staged import StagedGraphs
from edge_runtime.errors import TensorError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import decode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import SeedPoolWork
from edge_runtime.zero_order.estimator import central_differences, check_epsilon
from edge_runtime.zero_order.pool import (
    Direction,
    device_number,
    seeds_of_step,
    step_weights,
    tensor_indices,
)

Array = npt.NDArray[np.float32]

_RANK = 1
"""Rank of the LoRA factors that the graphs take as inputs; the factors are 0 and stay 0."""


class SeedPoolTuning:
    """Loads forward graphs alone; see :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.graphs = StagedGraphs(artifact, num_threads=settings.num_threads)
        self.kept = Kept(settings.folder_of("seed_pool"))
        self._limit = settings.memory_limit_bytes

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run that does not fit this device.

        Raises:
            TensorError: weights are stored in so few bits that they cannot be tuned.
            InsufficientMemoryError: the model does not fit.
        """
        self._check(welcome.batch_size, welcome.max_length)

    def begin(self, assignment: Assignment, work: SeedPoolWork, blob: bytes, around: Surroundings) -> Task:
        """Check the assignment and its payload.

        Raises:
            TensorError: the head does not fit, weights are stored in too few bits, or coefficients are not finite.
            InsufficientMemoryError: the work does not fit this device.
        """
        self._check(work.batch_size, work.max_length)
        check_count(work, work.num_perturbations)
        direction = Direction.of(work.pool)
        manifest, given = self.artifact.manifest, decode_payload(blob)
        layout = AdapterLayout.of(manifest, Plan.full(manifest), _RANK)
        dense = {spec.name for spec in manifest.dense}
        if given.adapter.keys() != dense or given.merged or given.importance:
            msg = f"a payload to tune all weights from holds {sorted(given.adapter)[:4]}, expected {sorted(dense)}"
            raise TensorError(msg)
        factors = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items() if name not in dense}
        adapter = {**factors, **given.adapter}
        layout.check(adapter)
        params = layout.flatten(adapter)

        def start(dataset: Dataset) -> SeedPoolExecution:
            return SeedPoolExecution(self, assignment, work, layout, (params, direction), around, dataset)

        return Task(max_length=work.max_length, start=start)

    def _check(self, batch_size: int, max_length: int) -> None:
        tensor_indices(self.artifact.manifest)
        needed = memory.estimate_whole_bytes(self.artifact.manifest, batch_size, max_length)
        if needed > self._limit:
            msg = (
                f"tuning all weights needs about {needed / 1e6:.0f} MB, this device may use {self._limit / 1e6:.0f} "
                "MB: choose a smaller batch or shorter examples, or raise --memory-limit"
            )
            raise InsufficientMemoryError(msg)


class SeedPoolExecution(ScalarSteps):
    """See :class:`edge_runtime.agent.methods.protocol.Execution`. One copy of the weights is changed step by step.

    The copy is made when the work starts, in one pass over the seeds that moved the weights in all earlier rounds.

    Raises:
        TensorError: float32 does not resolve epsilon.
    """

    def __init__(
        self,
        method: SeedPoolTuning,
        assignment: Assignment,
        work: SeedPoolWork,
        layout: AdapterLayout,
        start: tuple[Array, Direction],
        around: Surroundings,
        dataset: Dataset,
    ) -> None:
        super().__init__(method.kept, assignment, (work.num_perturbations,), work, work.pool.seed, around)
        self._digest = method.artifact.digest
        self._asked = work
        self._device = device_number(assignment.key.device_id)
        manifest = method.artifact.manifest
        indices = tensor_indices(manifest)
        places = layout.places
        self._dense = [(indices[spec.name], places[spec.name]) for spec in manifest.dense]
        self._params, direction = start
        self._move_dense(direction, self._params)
        around.say(f"weights along {len(direction.weights)} seeds")
        self._weights = WholeWeights(method.artifact, direction, around.check)
        self._weights.keep(dataset)
        self._weights.check_epsilon(work.epsilon)
        for _, place in self._dense:
            check_epsilon(self._params[place], work.epsilon)
        self._read = self._params.copy()
        self._model = method.graphs.model(self._weights, layout, 1.0)

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality at theta as it stands."""
        self._weights.keep(holdout)
        self._read_less(self._along(()))
        return score_all(self._model, self._params, holdout, self._work.batch_size, self._around.check)

    def identity(self, dataset: Dataset) -> str:
        """See :meth:`ScalarSteps.identity`."""
        return identity_of(self._assignment, self._asked, self._digest, dataset)

    def measure(self, batch: Batch, step: int) -> Measured:
        """Differences of losses along the seeds of the step."""
        epsilon = self._asked.epsilon
        numbers = self._seeds(step)
        losses = np.empty((2, len(numbers)), np.float64)
        for place, number in enumerate(numbers):
            for side, sign in enumerate((1, -1)):
                self._around.check()
                self._read_less(self._along([(number, -sign * epsilon)]))
                loss_sum, _ = self._model.score(batch, self._read)
                losses[side, place] = loss_sum / max(1, batch.num_targets)
        scalars, num_bad = central_differences(losses[0], losses[1], epsilon, self._asked.largest_scalar)
        return Measured(scalars=scalars, num_not_finite=num_bad, loss=mean_of(losses))

    def apply(self, step: int, scalars: Array) -> None:
        """Move all weights along the seeds of the step."""
        weights = step_weights(scalars, self._asked.learning_rate)
        direction = self._along(list(zip(self._seeds(step), weights.tolist(), strict=True)))
        self._weights.move(direction)
        self._move_dense(direction, self._params)

    def _seeds(self, step: int) -> list[int]:
        work = self._asked
        pool, count = work.pool, work.num_perturbations
        return seeds_of_step(pool.seed, self._device, self._round_number, step, pool.num_seeds, count)

    def _along(self, weights: list[tuple[int, float]] | tuple[()]) -> Direction:
        pool = self._asked.pool
        return Direction(pool.seed, pool.noise, weights)

    def _read_less(self, direction: Direction) -> None:
        """Let the model read theta - direction from now on."""
        self._weights.read_less(direction)
        self._move_dense(direction, self._read)
        self._model.convert_again()

    def _move_dense(self, direction: Direction, out: Array) -> None:
        for index, place in self._dense:
            direction.subtract_from(self._params[place], index, out[place])
