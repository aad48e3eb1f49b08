"""Training on the device: the training graph computes gradients, the optimizer graph applies AdamW to flat vectors.

One optimizer step over ``M`` micro-batches: the training graph adds each one's gradient to ``grad_accum``, then the
optimizer graph divides by ``M``, clips by global norm and applies AdamW (Loshchilov and Hutter 2019,
https://arxiv.org/abs/1711.05101, decoupled decay). Vectors alternate between two buffers, so a graph never writes its
inputs and nothing is copied. When a run shrinks to a smaller plan, weights, adapter and both moments lose the same
units, and the step count goes on.

Shape legend: ``N`` trainable elements, ``M`` micro-batches of a step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.buckets import buckets
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.frozen import FrozenWeights
from edge_runtime.engine.importance import check_scores
from edge_runtime.engine.model import Mode, Scorer
from edge_runtime.engine.modes import graphs_of
from edge_runtime.engine.run import BaseRun, Run
from edge_runtime.engine.session import Binding, Graph
from edge_runtime.engine.slicing import NOTHING_MERGED, shrink_weights, slice_weights
from edge_runtime.engine.training_state import VECTORS, History, TrainingState
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, shrink
from edge_runtime.formats.payload import Merged
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.work import HyperParameters

Array = npt.NDArray[np.float32]

NOTHING_PRUNED: Final[Mapping[int, Plan]] = MappingProxyType({})


class Trainer:
    """The loaded graphs of one artifact, made once per process for all arms and rounds.

    Args:
        artifact: the opened artifact.
        num_threads: threads for one operator.
        mode: how the graphs are run.

    Raises:
        GraphError: onnxruntime refuses a graph.
        InsufficientMemoryError: a graph cannot be loaded for lack of memory.
    """

    def __init__(self, artifact: Artifact, *, num_threads: int, mode: Mode = "fused") -> None:
        self.artifact = artifact
        self.num_threads = num_threads
        self.mode = mode
        self.graphs = graphs_of(artifact, mode, num_threads=num_threads)
        self.graphs.load_training()
        self.optimizer = Graph(artifact.path(names.OPTIMIZER_GRAPH), num_threads=num_threads)

    def start(
        self,
        plan: Plan,
        rank: int,
        adapter: Mapping[str, Array],
        hyper_parameters: HyperParameters,
        merged: Merged = NOTHING_MERGED,
    ) -> TrainingRun:
        """Slice the weights and bind everything for one assignment.

        Args:
            plan: units that stay.
            rank: LoRA rank of ``adapter``.
            adapter: initial adapter, float32, under (plan, rank).
            hyper_parameters: see :class:`HyperParameters`.
            merged: factors under ``plan`` that are added to the frozen weights.

        Raises:
            TensorError: adapter or merged factors do not fit plan and rank.
            ArtifactCorruptedError: the base weights do not match the manifest.
        """
        weights = slice_weights(
            self.artifact,
            plan,
            merged,
            lora_scaling=hyper_parameters.lora_scaling,
            keep_stored=self.graphs.keeps_stored,
        )
        return TrainingRun(self, plan, rank, adapter, hyper_parameters, weights)


class TrainingRun(BaseRun):
    """One assignment under way: weights, adapter and optimizer state. Made by :meth:`Trainer.start`."""

    _state: dict[str, Array]
    _next: dict[str, Array]
    _frozen: list[slice]

    def __init__(
        self,
        trainer: Trainer,
        plan: Plan,
        rank: int,
        adapter: Mapping[str, Array],
        hyper_parameters: HyperParameters,
        weights: FrozenWeights,
        cut: int = 0,
    ) -> None:
        """Begin at an adapter.

        Args:
            trainer: has the graphs; it must be in staged mode if there is a cut.
            plan: units that stay.
            rank: LoRA rank of ``adapter``.
            adapter: see :meth:`Trainer.start`.
            hyper_parameters: see :class:`HyperParameters`.
            weights: sliced under ``plan``; weights below the cut are not needed.
            cut: number of lower blocks whose factors are not trained; batches hold hidden states after these blocks.

        Raises:
            TensorError: the adapter does not fit plan and rank.
        """
        layout = AdapterLayout.of(trainer.artifact.manifest, plan, rank)
        params = layout.flatten(adapter)
        super().__init__(trainer.artifact, plan, layout, params, hyper_parameters, weights)
        self._cut = cut
        self._norm = np.zeros((), np.float32)
        self._graphs = trainer.graphs
        self._model = self._graphs.model(weights, self.layout, hyper_parameters.lora_scaling)
        self._scalars = self._bind_optimizer(trainer.optimizer)
        zeros = self._last_grads
        self._hold({names.PARAMS: params, names.EXP_AVG: zeros.copy(), names.EXP_AVG_SQ: zeros.copy()}, zeros)

    def step(self, micro_batches: Iterable[Batch], on_batch: Callable[[], None] | None = None) -> float:
        """One optimizer step.

        The learning rate of step ``s`` (1-based) is ``learning_rate * min(1, s / num_warmup_steps)``.

        Args:
            micro_batches: 1 or more; their gradients are averaged with equal weight.
            on_batch: called before each micro-batch; if it raises to stop, the adapter is as before this step.

        Returns:
            Mean of the micro-batches' losses before the step, nats.

        Raises:
            DivergedError: a loss or the gradient is not finite; the adapter is as before this step.
            GraphError: onnxruntime failed.
            InsufficientMemoryError: it could not allocate.
        """
        num_batches, total, grads = 0, 0.0, self._zeros
        for batch in micro_batches:
            if on_batch is not None:
                on_batch()
            num_batches += 1
            for part in buckets(batch):
                summed = self._grads[0] if grads is self._grads[1] else self._grads[1]
                total += self._model.gradient(part, self._state[names.PARAMS], grads, summed, batch.num_targets)
                grads = summed
        loss = total / num_batches
        self._check_finite("loss", loss)
        for frozen in self._frozen:
            grads[frozen] = 0.0
        self._apply(grads, num_batches)
        return loss

    def prune(self, plan: Plan) -> None:
        """Shrink to a smaller plan: weights, adapter, moments and smoothed scores lose the same units.

        Elements that stay keep their value bit for bit. Step count, warm-up and bias correction go on.

        Raises:
            PlanError: the plan keeps a unit that was removed.
        """
        plan.check_within(self.plan)
        self._shrink(plan)

    def _shrink(self, plan: Plan) -> None:
        for name, value in shrink_weights(self._manifest, self.weights, self.plan, plan):
            self.weights.put(name, value)
            self._model.reload(name)
        layout = AdapterLayout.of(self._manifest, plan, self.layout.rank)

        def shrunk(flat: Array) -> Array:
            return layout.flatten(shrink(self._manifest, self.layout.unflatten(flat), self.plan, plan))

        state = {name: shrunk(value) for name, value in self._state.items()}
        last_grads = shrunk(self._last_grads)
        self._importance.restrict(plan)
        self.plan, self.layout = plan, layout
        self._model.hold(layout, self._hyper_parameters.lora_scaling)
        self._hold(state, last_grads)

    @property
    def resumable(self) -> Self:
        """The run itself, because its state can be saved."""
        return self

    def state(self) -> TrainingState:
        """Return the state for another run of the assignment; the next step of this run changes its arrays."""
        return TrainingState(
            num_steps=self.num_steps,
            grad_norm=self.grad_norm,
            plan=self.plan.packed,
            vectors=dict(self._state),
            scores=self._importance.so_far(),
        )

    def restore(self, state: TrainingState) -> None:
        """Take the state of another run of the same assignment, bit for bit; after an error nothing is changed.

        Raises:
            PlanError: the state's plan is for another model, or keeps a unit that was removed.
            TensorError: the state's vectors do not fit its plan and this run's rank, or its scores do not fit its plan.
        """
        plan = state.plan.open(self._manifest)
        plan.check_within(self.plan)
        layout = AdapterLayout.of(self._manifest, plan, self.layout.rank)
        for name in VECTORS:
            layout.check(layout.unflatten(state.vectors[name]))
        check_scores(plan, state.scores)
        if plan != self.plan:
            self._shrink(plan)
        self._importance.take_up(state.scores)
        self._hold({name: state.vectors[name].copy() for name in VECTORS}, np.zeros(layout.num_elements, np.float32))
        self.num_steps, self.grad_norm = state.num_steps, state.grad_norm

    def adapter(self) -> dict[str, Array]:
        """The current adapter: float32 copies by name."""
        return self.layout.unflatten(self._state[names.PARAMS].copy())

    def _scorer(self) -> Scorer:
        """A second model with the same weights."""
        return self._graphs.model(self.weights, self.layout, self._hyper_parameters.lora_scaling)

    def gradient(self) -> dict[str, Array]:
        """Mean gradient of the last step's micro-batches, before clipping, by name.

        Zeros before the first step, and for tensors that are not trained; under a smaller plan after :meth:`prune`.
        """
        return self.layout.unflatten(self._last_grads * self._scalars[names.GRAD_SCALE])

    def _apply(self, grads: Array, num_micro_batches: int) -> None:
        """Apply AdamW to the summed gradient; the new state becomes the current one only if the gradient is finite."""
        step = self.num_steps + 1
        self._scalars[names.GRAD_SCALE][...] = 1.0 / num_micro_batches
        self._scalars[names.LEARNING_RATE][...] = self._learning_rate
        # The graph has float32 betas, and 1 - float32(0.999) is off by 1e-5. The correction must use the same betas.
        self._scalars[names.BIAS_CORRECTION1][...] = 1.0 - float(self._scalars[names.BETA1]) ** step
        self._scalars[names.BIAS_CORRECTION2][...] = 1.0 - float(self._scalars[names.BETA2]) ** step
        self._last_grads = grads
        self._optimizer.bind(names.GRADS, grads)
        for name in VECTORS:
            self._optimizer.bind(name, self._state[name])
            self._optimizer.bind_output(name + names.OUT_SUFFIX, self._next[name])
        self._optimizer.run()
        self._check_finite("gradient norm", float(self._norm))
        for part in self._frozen:  # weight decay does not change them either
            self._next[names.PARAMS][part] = self._state[names.PARAMS][part]
        self._last_params = self._state[names.PARAMS]  # this array is not written before the next step
        self._state, self._next = self._next, self._state
        self.num_steps, self.grad_norm = step, float(self._norm)

    def _hold(self, state: dict[str, Array], last_grads: Array) -> None:
        """Make these vectors ``[N]`` the current state, with buffers of their size; layout and plan are set before."""
        self._state = state
        self._last_params, self._last_grads = state[names.PARAMS], last_grads
        self._next = {name: np.empty_like(value) for name, value in state.items()}
        self._zeros = np.zeros_like(last_grads)
        self._grads = [np.empty_like(last_grads), np.empty_like(last_grads)]
        below = self.layout.parts(self._manifest).blocks[: self._cut]
        self._frozen = [*_frozen_parts(self.layout, self._hyper_parameters), *below]

    def _bind_optimizer(self, graph: Graph) -> dict[str, Array]:
        """Bind the scalars, which later steps change in place; return them by name."""
        given = self._hyper_parameters
        self._optimizer = Binding(graph)
        values = {
            names.GRAD_SCALE: 1.0,
            names.LEARNING_RATE: given.learning_rate,
            names.WEIGHT_DECAY: given.weight_decay,
            names.MAX_GRAD_NORM: math.inf if given.max_grad_norm is None else given.max_grad_norm,
            names.BETA1: given.beta1,
            names.BETA2: given.beta2,
            names.EPSILON: given.epsilon,
            names.BIAS_CORRECTION1: 1.0,
            names.BIAS_CORRECTION2: 1.0,
        }
        scalars = {name: np.array(value, np.float32) for name, value in values.items()}
        for name, value in scalars.items():
            self._optimizer.bind(name, value)
        self._optimizer.bind_output(names.GRAD_NORM, self._norm)
        return scalars


def _frozen_parts(layout: AdapterLayout, hyper_parameters: HyperParameters) -> list[slice]:
    """Return the parts of the flat vector whose tensors are not trained."""
    trained = layout.trained(hyper_parameters.trainable).shapes
    ends = np.cumsum(layout.sizes).tolist()
    begins = [0, *ends[:-1]]
    parts = zip(layout.shapes, begins, ends, strict=True)
    return [slice(begin, end) for name, begin, end in parts if name not in trained]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """The figures of a finished training loop."""

    mean_loss: float | None
    """Mean of the losses of all steps, nats; None for work without a loss."""
    step_times_s: tuple[float, ...]
    """Wall time of each optimizer step, drawing its batches and a pruning before it included."""
    importance_s: float
    """Wall time of scoring units, between the steps."""


def train(
    run: Run,
    batches: Iterator[Batch],
    hyper_parameters: HyperParameters,
    on_step: Callable[[int, float], None] | None = None,
    on_batch: Callable[[], None] | None = None,
    prunings: Mapping[int, Plan] = NOTHING_PRUNED,
    history: History | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainingResult:
    """Make ``hyper_parameters.num_local_steps`` optimizer steps, or the remaining ones after ``history``.

    Units are scored after every ``importance_every_steps`` steps, or after the last step if there are fewer.

    Args:
        run: a run of the engine, as from :meth:`Trainer.start`.
        batches: endless batches, see :func:`edge_runtime.engine.dataset.batches`; without those of earlier steps.
        hyper_parameters: number of steps and of micro-batches in each.
        on_step: called after each step with the number of steps made and the step's loss.
        on_batch: called before each micro-batch; raises to stop, and the sum of the step under way is dropped.
        prunings: plans that the run shrinks to, by the optimizer step (1-based) before which it does.
        history: steps that were made before, by another process too; those of now are added. None: this is the first.
        clock: seconds; may stand still while nothing is trained.

    Raises:
        PlanError: a pruning keeps a unit that is gone.
        DivergedError: see :meth:`TrainingRun.step`.
        GraphError: onnxruntime failed.
        InsufficientMemoryError: it could not allocate.
    """
    done = History() if history is None else history
    num_steps, every = hyper_parameters.num_local_steps, hyper_parameters.importance_every_steps
    for step in range(len(done.losses) + 1, num_steps + 1):
        started = clock()
        if step in prunings:
            run.prune(prunings[step])
        loss = run.step(islice(batches, hyper_parameters.num_accumulation_steps), on_batch)
        stepped = clock()
        done.losses.append(loss)
        done.step_times_s.append(stepped - started)
        if every and step % min(every, num_steps) == 0:
            run.score_units()
            done.importance_s += clock() - stepped
        if on_step is not None:
            on_step(step, loss)
    mean_loss = math.fsum(done.losses) / len(done.losses)
    return TrainingResult(mean_loss=mean_loss, step_times_s=tuple(done.step_times_s), importance_s=done.importance_s)
