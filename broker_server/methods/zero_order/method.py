"""Zero-order tuning on the server: MeZO, DeComFL, FedSPZO and top-k are settings of one form (docs/zero-order.md).

Devices send a scalar for each perturbation. All devices of a round share perturbations. So the server combines scalars,
applies the resulting steps to its own model, and keeps the scalars in a log, which devices replay.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

import msgspec
import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated, check_bounds
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.tables import AUTOMATIC, NUM_SEEDS, ZeroOrderConfig
from broker_server.methods.zero_order.combine import RULES
from broker_server.methods.zero_order.cut import Stack, check_movable, next_cut
from broker_server.methods.zero_order.log import MAX_BYTES, Log
from broker_server.methods.zero_order.preconditioning import start_of
from broker_server.methods.zero_order.scalars import ScalarTuning
from broker_server.methods.zero_order.whole import SeedPoolTuning, check_whole
from broker_server.options import options_of
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats.adapter import AdapterLayout, Array, restrict
from edge_runtime.formats.head import Head
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.zero_order import NOT_FINITE
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, ProbeWork, Work, ZeroOrderWork
from edge_runtime.zero_order.estimator import check_epsilon
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner
from edge_runtime.zero_order.replay import apply_round

logger = logging.getLogger(__name__)

MAX_SCALARS: Final = (MAX_BYTES - 1024) // 4
"""Most scalars of a round, so that the log can hold them."""


class ZeroOrder(ScalarTuning[ZeroOrderWork]):
    """B factors and the head of the whole model, tuned by differences of losses."""

    work_type = "zero_order"
    asks: ClassVar[str] = "forward passes over the whole model at perturbed parameters; a scalar for each perturbation"
    first_work = "probe"
    uses = (
        Method.uses
        | {"learning_rate", "final_learning_rate_ratio", "lora_scaling"}
        | options_of(ZeroOrderConfig).keys()
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        settings, manifest = context.tables.zero_order, context.manifest
        self._stack = Stack.of(manifest, self._parts_at) if settings.move_cut else None
        self._cut = _cut(settings.cut, manifest, self._stack)
        self._layout = AdapterLayout.of(manifest, Plan.full(manifest), context.max_rank)
        self._checked: Aggregated | None = None
        self._begun: tuple[Aggregated, int, PreconditionerStart] | None = None
        self._accepted: dict[str, int] = {}
        """Last round with accepted scalars of each device in this process: the device has the initial model of that
        round, or a later one."""

    @classmethod
    def of(cls, context: MethodContext) -> Method:
        """Make this method, or the class for tuning of all weights; see :meth:`Method.of`."""
        return SeedPoolTuning(context) if context.tables.zero_order.tune == "all" else cls(context)

    @classmethod
    def check_settings(cls, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
        """Refuse too many scalars, and settings that do not fit the model; see :meth:`Method.check_settings`."""
        cls.check_one_arm(settings, "zero-order tuning")
        numbers = [int(str(settings[name])) for name in ("local_steps", "zo_outer", "zo_inner")]
        if settings["zo_move_cut"]:
            check_movable(settings)
        if settings["zo_normalise"] and numbers[1] * numbers[2] == 1:
            msg = "--zo-normalise divides by the standard deviation of a step's scalars: give --zo-inner 2 or more"
            raise ConfigError(msg)
        if (num_scalars := int(np.prod(numbers))) > MAX_SCALARS:
            msg = (
                f"--local-steps {numbers[0]}, --zo-outer {numbers[1]} and --zo-inner {numbers[2]} give {num_scalars} "
                f"scalars a round, and the log of rounds holds {MAX_SCALARS}: give fewer steps, and more rounds"
            )
            raise ConfigError(msg)
        if settings["tune"] == "all":
            check_whole(settings, manifest)
        elif settings["zo_seeds"] != NUM_SEEDS:
            msg = f"--zo-seeds is {settings['zo_seeds']}, but only --tune all has a pool of seeds: leave it out"
            raise ConfigError(msg)
        if manifest is not None:
            _check_model(settings, manifest)

    # ---- assignments -------------------------------------------------------------------------------------------------

    def awaits_head(self, model: Aggregated) -> bool:
        """Return whether devices compute the sums of the probe next, for the initial head."""
        return self._probe is not None and Log.of(model.memory) is None

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Ask for the probe's sums first if they give the initial head, then for steps; see :meth:`Method.ask`.

        Raises:
            ConfigError: the perturbation is lost in the rounding of the perturbed values.
        """
        log = Log.of(model.memory)
        if log is None and self._probe is not None:
            return self._probe.ask(key, arm, at_once=at_once, model=model)
        log = log or Log()
        training, settings = self._context.training, self._context.tables.zero_order
        parts = self._parts_at(self._next_cut(log))
        self._check_epsilon(model, parts)
        rate = self._context.learning_rate_at(key.round_number)
        preconditioner = self._preconditioner(log, model, parts, key.round_number)
        work = ZeroOrderWork(
            arm=arm,
            seed=self._context.seed,
            cut=parts.cut,
            lower_learning_rate=self._lower_rate(rate, parts),
            learning_rate=rate,
            num_outer=settings.num_outer,
            num_inner=settings.num_inner,
            num_local_steps=training.num_local_steps,
            epsilon=settings.epsilon,
            largest_scalar=log.largest_scalar,
            batch_size=training.batch_size,
            max_length=training.max_length,
            lora_scaling=training.lora_scaling,
            is_normalised=settings.normalise,
            preconditioner=preconditioner,
            noise=settings.noise,
            log=log.since(self._accepted.get(key.device_id), preconditioner),
        )
        return AssignedWork.under_one_plan(work, arm, num_steps=work.num_local_steps)

    def _parts_at(self, cut: int) -> TunedParts:
        return TunedParts.of(self._manifest, self._context.max_rank, cut)

    def _next_cut(self, log: Log) -> int:
        """Cut of the next round, the same for all devices, because it follows from the log alone."""
        return self._cut if self._stack is None else next_cut(log, self._stack, self._cut)

    def _preconditioner(
        self, log: Log, model: Aggregated, parts: TunedParts, round_number: int
    ) -> PreconditionerStart | None:
        """Start of the preconditioner, the same for all devices of a round."""
        if not self._context.tables.zero_order.precondition:
            return None
        if self._begun is None or self._begun[0] is not model or self._begun[1] != round_number:
            self._begun = (model, round_number, start_of(log, parts, self._context.seed, round_number))
        return self._begun[2]

    def _lower_rate(self, rate: float, parts: TunedParts) -> float:
        """Learning rate of the lower part; 0 if it has no tuned tensors, so that it is not perturbed."""
        given = self._context.tables.zero_order.lower_learning_rate
        if not parts.lower:
            return 0.0
        return rate / 2 if given == AUTOMATIC else given

    def _check_epsilon(self, model: Aggregated, parts: TunedParts) -> None:
        if model is self._checked:
            return
        self._checked = model
        for tensor in (*parts.lower, *parts.upper):
            try:
                check_epsilon(model.adapter[tensor.name], self._context.tables.zero_order.epsilon)
            except TensorError as error:
                msg = f"zo_epsilon is too small for {tensor.name}: {error}"
                raise ConfigError(msg) from error

    def kept(self, work: Work) -> Work:
        """The work without its log, which has tens of kilobytes and only saves a pull; see :meth:`Method.kept`."""
        if not isinstance(work, ZeroOrderWork) or work.preconditioner is not None:
            return work
        return msgspec.structs.replace(work, log=())

    def start_kind(self, work: Work) -> Hashable:
        """The rank, or the probe's key; see :meth:`Method.start_kind`."""
        return self._probe_of(work).start_kind(work) if isinstance(work, ProbeWork) else self._asked(work).arm.rank

    def start(self, model: Aggregated, work: Work) -> Payload:
        """The whole adapter, or the probe's head; see :meth:`Method.start`."""
        if isinstance(work, ProbeWork):
            return self._probe_of(work).start(model, work)
        plan, rank = Plan.full(self._manifest), self._asked(work).arm.rank
        return Payload(adapter=restrict(self._manifest, model.adapter, plan, rank))

    # ---- replies -----------------------------------------------------------------------------------------------------

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """Combine scalars, and apply their steps; see :meth:`Method.combine`."""
        if all(isinstance(reply.work, ProbeWork) for reply in replies):
            combined = self._probe_of(replies[0].work).combine(round_number, before, importance, replies, rng)
            memory = {**before.memory, **Log(complete_from=round_number + 1).in_memory()}
            return dataclasses.replace(combined, model=dataclasses.replace(combined.model, memory=memory))
        log, asked = Log.of(before.memory) or Log(complete_from=round_number), self._same_work(replies)
        ordered, values, magnitude = self._values(replies, asked)
        weights = np.array([reply.num_examples for reply in ordered], np.float64)
        scalars = RULES[self._context.tables.zero_order.combine](values, weights)
        logged = LoggedRound(
            round_number=round_number,
            cut=asked.cut,
            lower_learning_rate=asked.lower_learning_rate,
            learning_rate=asked.learning_rate,
            num_outer=asked.num_outer,
            num_inner=asked.num_inner,
            is_normalised=asked.is_normalised,
            preconditioner=asked.preconditioner,
            noise=asked.noise,
            scalars=scalars.astype("<f4").tobytes(),
        )
        adapter = self._applied(before, log, logged, asked)
        log = log.after(logged, magnitude)
        if (measured := log.lower_share) is not None:
            percent = 100 * measured.share
            logger.info("round %d: of the gradient %.0f %% are below the cut of %d", round_number, percent, asked.cut)
        if (cut := self._next_cut(log)) != asked.cut:
            logger.info("after round %d the cut moves from %d to %d", round_number, asked.cut, cut)
        self._accepted |= {reply.device_id: round_number for reply in replies}
        self._accepted = {name: last for name, last in self._accepted.items() if last >= log.complete_from}
        return Combined(
            model=Aggregated(adapter=adapter, merged=before.merged, memory={**before.memory, **log.in_memory()}),
            importance=importance,
            not_finite={reply.device_id: int(reply.tensors[NOT_FINITE][0]) for reply in replies},
        )

    def _applied(self, before: Aggregated, log: Log, logged: LoggedRound, asked: ZeroOrderWork) -> dict[str, Array]:
        """The adapter after a round's steps.

        Raises:
            AggregationError: the adapter is beyond every bound.
        """
        flat = self._layout.flatten(before.adapter)
        parts = self._parts_at(asked.cut)
        scale = None
        if logged.preconditioner is not None:
            rounds = (entry.logged for entry in log.entries)
            scale = Preconditioner.after(parts, asked.seed, rounds, logged.preconditioner).scale
        apply_round(flat, parts, asked.seed, logged, scale)
        adapter = self._layout.unflatten(flat)
        check_bounds(self._manifest, adapter)
        return adapter

    def _asked(self, work: Work) -> ZeroOrderWork:
        if not isinstance(work, ZeroOrderWork):
            msg = f"assignment asks for {type(work).__name__}, this run's method is zero-order: start a new run"
            raise MessageError(msg)
        return work

    def _comparable(self, work: ZeroOrderWork) -> ZeroOrderWork:
        """The work without the log, which differs by device."""
        return msgspec.structs.replace(work, log=())


def _cut(given: int, manifest: Manifest, stack: Stack | None) -> int:
    """Cut of the first round.

    Raises:
        TensorError: the cut cannot move from there.
    """
    if stack is not None:
        return stack.first(None if given == AUTOMATIC else given)
    return manifest.num_layers // 2 if given == AUTOMATIC else given


def _check_model(settings: Mapping[str, object], manifest: Manifest) -> None:
    cut = int(str(settings["zo_cut"]))
    try:
        stack = Stack.of(manifest, lambda cut: TunedParts.of(manifest, 1, cut)) if settings["zo_move_cut"] else None
        TunedParts.of(manifest, 1, _cut(cut, manifest, stack))
    except TensorError as error:
        msg = f"--zo-cut is {cut}: {error}"
        raise ConfigError(msg) from error
    if settings["zo_head"] == "probe" and manifest.task == "text-classification":
        try:
            Head.of(manifest)
        except TensorError as error:
            msg = f"--zo-head is probe, but {error}; or give --zo-head as-it-is"
            raise ConfigError(msg) from error
        if settings["update_transforms"]:
            msg = "--update-transforms do not apply to the sums of --zo-head probe: give --zo-head as-it-is with them"
            raise ConfigError(msg)
