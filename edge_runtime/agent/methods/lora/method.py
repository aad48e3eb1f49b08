"""The device's side of first-order LoRA: its needs, its work and its reply."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np

from edge_runtime.agent.methods.lora.engines import Engines
from edge_runtime.agent.methods.lora.local_training import LocalTraining
from edge_runtime.agent.methods.protocol import Before, Surroundings, Task
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.model import Mode
from edge_runtime.engine.run import Run
from edge_runtime.engine.trainer import TrainingResult
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan, uniform_num_kept
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.messages import Assignment, Welcome
from edge_runtime.wire.work import Arm, LoraWork

logger = logging.getLogger(__name__)


class Lora:
    """See :class:`edge_runtime.agent.methods.protocol.Method`."""

    def __init__(self, artifact: Artifact, settings: WorkSettings) -> None:
        self.artifact = artifact
        self.engines = Engines(
            artifact,
            num_threads=settings.num_threads,
            memory_limit_bytes=settings.memory_limit_bytes,
            modes=settings.modes,
            ort_models=settings.ort_models,
        )

    def check_run(self, welcome: Welcome) -> None:
        """Refuse a run if no arm fits this device's memory; load the graphs of the first arm that fits.

        Raises:
            ArmNotExportedError: see :meth:`Engines.check_arms`.
            InsufficientMemoryError: not even the cheapest arm fits.
        """
        self.engines.load(self._first_mode(welcome))

    def _first_mode(self, welcome: Welcome) -> Mode:
        self.engines.check_arms(welcome.arms)
        refusals: list[InsufficientMemoryError] = []
        for arm in welcome.arms:
            plan = stand_in_plan(self.artifact.manifest, arm)
            try:
                return self.engines.mode_for(plan, arm.rank, welcome.batch_size, welcome.max_length)
            except InsufficientMemoryError as error:
                refusals.append(error)
        if not refusals:
            return self.engines.first_mode
        msg = f"even the cheapest of {len(refusals)} arms does not fit: {refusals[-1]}"
        raise InsufficientMemoryError(msg) from refusals[-1]

    def begin(self, assignment: Assignment, work: LoraWork, blob: bytes, around: Surroundings) -> Task:
        """Check the assignment and its payload; memory is estimated for the first plan, which is the largest.

        Raises:
            PlanError: a plan is for another model, or a pruning brings units back.
            TensorError: the payload does not fit.
            InsufficientMemoryError: the arm does not fit this device.
            OrtTrainingError: this device's ort-training models cannot do the work.
        """
        manifest, hyper = self.artifact.manifest, work.hyper_parameters
        plan = work.plan.open(manifest)
        prunings = {pruning.at_step: pruning.plan.open(manifest) for pruning in work.prunings}
        for before, smaller in itertools.pairwise((plan, *prunings.values())):
            smaller.check_within(before)
        self.engines.check(work, plan)
        mode = self.engines.mode_for(plan, work.arm.rank, hyper.batch_size, hyper.max_length)
        given = decode_payload(blob)
        check_payload(manifest, plan, work.arm.rank, given, is_update=False, trainable=hyper.trainable)
        logger.info("round %d: %s mode, rank %d", assignment.key.round_number, mode, work.arm.rank)
        training = LocalTraining(assignment, work, prunings, self.artifact.digest, around)

        def start(_dataset: Dataset) -> LoraExecution:
            run = self.engines.load(mode).start(plan, work.arm.rank, given.adapter, hyper, given.merged)
            return LoraExecution(work, run, training, around)

        return Task(max_length=hyper.max_length, start=start)


class LoraExecution:
    """See :class:`edge_runtime.agent.methods.protocol.Execution`."""

    def __init__(self, work: LoraWork, run: Run, training: LocalTraining, around: Surroundings) -> None:
        self._work = work
        self._run = run
        self._training = training
        self._around = around

    def resume(self, dataset: Dataset) -> Before | None:
        """See :meth:`LocalTraining.resume`."""
        return self._training.resume(self._run, dataset)

    def evaluate(self, holdout: Dataset) -> EvaluationResult:
        """Quality of the adapter as it is."""
        run, hyper = self._run, self._work.hyper_parameters
        return run.evaluator().evaluate(
            run.adapter(), self._work.arm.rank, hyper.lora_scaling, holdout, hyper.batch_size, self._around.check
        )

    def train(self, dataset: Dataset, before: Before, on_step: Callable[[int, float], None]) -> TrainingResult:
        """See :meth:`LocalTraining.train`."""
        return self._training.train(self._run, dataset, before, on_step)

    def encode(self, dtype: WireDtype) -> bytes:
        """The trained tensors, and the importance scores if the work asks for them."""
        run = self._run
        adapter = run.adapter()
        trained = {name: adapter[name] for name in run.layout.trained(self._work.hyper_parameters.trainable).shapes}
        return encode_payload(Payload(adapter=trained, importance=run.importance()), dtype)


def stand_in_plan(manifest: Manifest, arm: Arm) -> Plan:
    """A plan of the size of the arm's, for memory estimates, which do not depend on the choice of units."""
    kept = {(spec.layer, spec.group): np.arange(uniform_num_kept(spec, arm.pruning_ratio)) for spec in manifest.groups}
    return Plan.from_kept(manifest, kept)
