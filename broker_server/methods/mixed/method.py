"""Mixed fleets: devices with enough memory train first-order, the others tune zero-order, in the same rounds.

After ZOWarmUp (arXiv 2509.03503). Both kinds of work at the same time, and their combination, are ours
(docs/zero-order.md). The arm decides between the two methods. A device without memory for first-order training refuses
that arm, and the scheduler gives it the next one. The methods of the two kinds do everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.mixed.combine import first_order_weight, mix
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.tables import MixedConfig, ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.methods.zero_order.log import Log
from broker_server.methods.zero_order.method import ZeroOrder
from broker_server.options import options_of
from edge_runtime.formats.adapter import Array
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.arms import RANK, ArmError, Axes, Axis
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, LoraWork, Work

ZERO_ORDER: Final = 1
FIRST_ORDER: Final = 2

ORDER: Final = Axis(
    name="order",
    label="order",
    metavar="ORDER",
    words="{}",
    kind=int,
    least=ZERO_ORDER,
    most=FIRST_ORDER,
    example=FIRST_ORDER,
    choices=("zero-order", "first-order"),
    cost=1.0,
)
"""The kind of work of a device, ordered by its memory."""

AGGREGATIONS: Final = ("ffa_lora", "fedit")
"""Rules that combine factors element by element, so that zero-order steps can be added to the same elements."""


class Mixed(Method):
    """Uses :class:`Lora` or :class:`ZeroOrder` for each assignment, and weighs the models that they make of replies."""

    work_type = "zero_order"
    asks: ClassVar[str] = (
        "by the arm: first-order training of the whole model's LoRA factors and head, or zero-order steps of the same"
    )
    first_work = "probe"
    has_step_times = False
    is_start_exact = True
    axes = Axes((ORDER, RANK))
    default_arms = "first-order:8,zero-order:8"
    uses = frozenset(
        {"aggregation", *(name for kind in (TrainingConfig, ZeroOrderConfig, MixedConfig) for name in options_of(kind))}
    ) - {"tune", "zo_seeds"}  # both kinds of steps tune one adapter

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        rate = context.tables.mixed.zero_order_learning_rate
        self._first_order = Lora(context)
        self._zero_order = ZeroOrder(dataclasses.replace(context, learning_rate_at=lambda _: rate))

    @classmethod
    def check_settings(cls, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
        """Refuse arms of several ranks, and settings that either kind refuses; see :meth:`Method.check_settings`."""
        try:
            ranks = {arm.rank for arm in cls.axes.parse(str(settings["arms"]))}
        except ArmError:
            return  # the parser of arms reports it
        if len(ranks) != 1:
            msg = f"--arms is {str(settings['arms'])!r}, but zero-order steps need one rank for all devices: give one"
            raise ConfigError(msg)
        if settings["aggregation"] not in AGGREGATIONS:
            name, rules = settings["aggregation"], " or ".join(AGGREGATIONS)
            msg = f"--aggregation is {name}, which mixes the components of factors that zero-order steps keep: {rules}"
            raise ConfigError(msg)
        ZeroOrder.check_settings({**settings, "arms": str(ranks.pop())}, manifest)

    # ---- assignments -------------------------------------------------------------------------------------------------

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Return first-order or zero-order work, by the arm; see :meth:`Method.ask`.

        In the probe's round and after the last first-order round all devices get the same work, as zero-order arms.
        """
        last = self._context.tables.mixed.num_first_order_rounds
        is_over = last is not None and key.round_number > last
        if ORDER.of(arm) == FIRST_ORDER and not is_over and not self._zero_order.awaits_head(model):
            return self._first_order.ask(key, arm, at_once=at_once, model=model)
        arm = self.axes.changed(arm, ORDER.name, ZERO_ORDER)
        return self._zero_order.ask(key, arm, at_once=at_once, model=model)

    def _of(self, work: Work) -> Method:
        return self._first_order if isinstance(work, LoraWork) else self._zero_order

    def kept(self, work: Work) -> Work:
        """See :meth:`Method.kept`."""
        return self._of(work).kept(work)

    def start_kind(self, work: Work) -> Hashable:
        """The kind of work, and that kind's key; see :meth:`Method.start_kind`."""
        return isinstance(work, LoraWork), self._of(work).start_kind(work)

    def start(self, model: Aggregated, work: Work) -> Payload | None:
        """See :meth:`Method.start`."""
        return self._of(work).start(model, work)

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """See :meth:`Method.trained`."""
        return self._of(work).trained(work)

    def before(self, model: Aggregated, work: Work, name: str) -> Array:
        """See :meth:`Method.before`."""
        return self._of(work).before(model, work, name)

    # ---- replies -----------------------------------------------------------------------------------------------------

    def is_averaged(self, work: Work) -> bool:
        """See :meth:`Method.is_averaged`."""
        return self._of(work).is_averaged(work)

    def most_bytes(self, work: Work) -> int:
        """See :meth:`Method.most_bytes`."""
        return self._of(work).most_bytes(work)

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """See :meth:`Method.check`."""
        self._of(work).check(work, blob, num_examples)

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """The mean of both methods' models, weighted by examples; see :meth:`Method.combine`.

        A round with first-order replies cannot be replayed from scalars. So the log is cut off after it, and devices
        pull the next model.
        """
        first_order = [reply for reply in replies if isinstance(reply.work, LoraWork)]
        zero_order = [reply for reply in replies if not isinstance(reply.work, LoraWork)]
        num_first, num_zero = (sum(reply.num_examples for reply in part) for part in (first_order, zero_order))
        if not first_order or (zero_order and not num_first):
            return self._zero_order.combine(round_number, before, importance, zero_order, rng)
        made = self._first_order.combine(round_number, before, importance, first_order, rng)
        adapter, memory = made.model.adapter, before.memory
        if num_zero:
            steps = self._zero_order.combine(round_number, before, importance, zero_order, rng)
            weight = first_order_weight(num_first, num_zero, self._context.tables.mixed.zero_order_share)
            adapter, memory = mix(adapter, steps.model.adapter, weight), steps.model.memory
            made = dataclasses.replace(made, not_finite=steps.not_finite)
        log = (Log.of(memory) or Log()).cut_off(round_number)
        model = Aggregated(adapter=adapter, merged=before.merged, memory={**memory, **log.in_memory()})
        return dataclasses.replace(made, model=model)
