"""The training of one assignment, from its beginning or from the checkpoint of an earlier process."""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable, Mapping

import numpy as np

from edge_runtime.agent.checkpoints import identity_of
from edge_runtime.agent.methods.protocol import Before, Surroundings
from edge_runtime.engine.checkpoint import Checkpoint
from edge_runtime.engine.dataset import Dataset, batches
from edge_runtime.engine.run import Resumable, Run
from edge_runtime.engine.trainer import TrainingResult, train
from edge_runtime.engine.training_state import History
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import LoraWork

logger = logging.getLogger(__name__)


class LocalTraining:
    """The progress of an assignment.

    Args:
        assignment: the assignment.
        work: its work.
        prunings: its later plans, each under the optimizer step before which the run shrinks to it.
        artifact_digest: digest of the artifact that is trained.
        around: see :class:`Surroundings`.
    """

    def __init__(
        self,
        assignment: Assignment,
        work: LoraWork,
        prunings: Mapping[int, Plan],
        artifact_digest: str,
        around: Surroundings,
    ) -> None:
        self._assignment = assignment
        self._work = work
        self._prunings = prunings
        self._artifact_digest = artifact_digest
        self._around = around
        self._checkpoints = around.checkpoints
        self._history = History()
        self._identity = ""

    def resume(self, run: Run, dataset: Dataset) -> Before | None:
        """Bring a new run to the state of the checkpoint; runs of onnxruntime-training have no checkpoint.

        Args:
            run: under the assignment's first plan, at its adapter.
            dataset: examples to train on.

        Returns:
            The evaluation from before training; None = there is no checkpoint, and the run is unchanged.
        """
        resumable = run.resumable
        if not self._checkpoints.every or resumable is None:
            return None
        self._identity = identity_of(self._assignment, self._work, self._artifact_digest, dataset)
        checkpoint = self._checkpoints.load(self._identity)
        if checkpoint is None:
            return None
        try:
            resumable.restore(checkpoint.state)
        except (PlanError, TensorError) as error:
            logger.warning("dropping a checkpoint that does not fit, work begins anew: %s", error)
            self._checkpoints.remove()
            return None
        self._history = checkpoint.history
        self._around.paused.add_earlier(checkpoint.paused_s)
        num_steps = self._work.hyper_parameters.num_local_steps
        logger.info("going on from the checkpoint after step %d of %d", run.num_steps, num_steps)
        return checkpoint.before, checkpoint.before_s

    def train(
        self,
        run: Run,
        dataset: Dataset,
        before: Before,
        on_step: Callable[[int, float], None],
    ) -> TrainingResult:
        """Make the remaining steps, and write checkpoints at the owner's interval.

        Batches are drawn anew from the first one, and those of earlier steps are dropped. So a checkpoint holds no
        state of a random generator, and the order is the same after every restart.

        Args:
            run: the run, after :meth:`resume`.
            dataset: examples to train on.
            before: the evaluation before training.
            on_step: called after each step with its number and loss.

        Raises:
            FedSpineError: see :func:`edge_runtime.engine.trainer.train`.
        """
        hyper = self._work.hyper_parameters
        rng = np.random.default_rng([hyper.seed, self._assignment.key.round_number])
        drawn = batches(dataset, hyper.batch_size, rng, class_balance=hyper.class_balance)
        num_drawn = run.num_steps * hyper.num_accumulation_steps
        collections.deque(itertools.islice(drawn, num_drawn), maxlen=0)

        resumable = run.resumable

        def after(step: int, loss: float) -> None:
            on_step(step, loss)
            if resumable is not None and self._checkpoints.is_due(step, hyper.num_local_steps):
                self._save(resumable, before)

        around = self._around
        return train(run, drawn, hyper, after, around.check, self._prunings, self._history, around.clock)

    def _save(self, run: Resumable, before: Before) -> None:
        result, seconds = before
        self._checkpoints.save(
            Checkpoint(
                identity=self._identity,
                state=run.state(),
                history=self._history,
                before=result,
                before_s=seconds,
                paused_s=self._around.paused.seconds,
            )
        )
