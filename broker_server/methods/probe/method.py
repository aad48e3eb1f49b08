"""Federated linear probes: a head averaged over rounds, or solved at once from sums that are added exactly.

Only the last linear layer is trained. The LoRA factors of the global adapter keep their initial values (B is zero), so
its file, its folder in PEFT's format and the compact model hold the pretrained model with a new head.
"""

from __future__ import annotations

import abc
import functools
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import Aggregated, check_bounds
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.probe.ridge import Float64, likelihood_scale, solve_ridge
from broker_server.methods.pruning.scores import Scores
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats import names, probe
from edge_runtime.formats.adapter import Array
from edge_runtime.formats.head import Head
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.arms import PRUNING_RATIO, Axes
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, ProbeWork, Work

HEADER_BYTES: Final = 4096
"""Allowance for the safetensors header of a reply, which has three tensors at most."""


class Probe(Method):
    """Base of the two forms of the probe: the work, and the initial head."""

    form: ClassVar[Literal["softmax", "statistics"]]
    work_type = "probe"
    has_step_times = False
    axes = Axes((PRUNING_RATIO,))
    default_arms = "0.0"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        try:
            self._head = Head.of(context.manifest)
        except TensorError as error:
            raise ConfigError(str(error)) from error
        num_classes, num_features = self._head.num_classes, self._head.num_features
        self._shapes = {self._head.weight: (num_classes, num_features), self._head.bias: (num_classes,)}

    def check_initial(self, model: Aggregated) -> None:
        """Devices compute features of the model without an adapter; see :meth:`Method.check_initial`."""
        if any(model.adapter[names.lora_b(target.module)].any() for target in self._manifest.targets):
            msg = (
                "the adapter to start from has LoRA factors that change the model, and a probe trains the head of the "
                "model without them: leave --adapter out, give that of a probe, or choose method fedit"
            )
            raise ConfigError(msg)

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """One pass over the features under the arm's plan, without a ramp; see :meth:`Method.ask`."""
        del at_once, model
        training, plans, ratio = self._context.training, self._context.plans, arm.pruning_ratio
        num_steps = training.num_local_steps if self.form == "softmax" else 1
        work = ProbeWork(
            plan=plans.at(ratio).packed,
            form=self.form,
            batch_size=training.batch_size,
            max_length=training.max_length,
            num_steps=num_steps,
            learning_rate=self._context.learning_rate_at(key.round_number),
            l2=training.weight_decay,
        )
        return AssignedWork.under_one_plan(work, arm, num_steps=num_steps, sparsity=plans.sparsity(ratio))

    def start_kind(self, work: Work) -> Hashable:
        """All devices start from the same; see :meth:`Method.start_kind`."""
        return _probe(work).form

    def start(self, model: Aggregated, work: Work) -> Payload:
        """The tensors without factors, the head among them; see :meth:`Method.start`."""
        del work
        return Payload(adapter={dense.name: model.adapter[dense.name] for dense in self._manifest.dense})

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """The head; see :meth:`Method.trained`."""
        del work
        return self._shapes

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """Replace the head, and keep everything else; see :meth:`Method.combine`."""
        del round_number, rng
        head = self._next_head(sorted(replies, key=lambda reply: reply.device_id))
        check_bounds(self._manifest, head)
        model = Aggregated(adapter={**before.adapter, **head}, merged=before.merged)
        return Combined(model=model, importance=importance)

    @abc.abstractmethod
    def _next_head(self, replies: Sequence[Reply]) -> dict[str, Array]:
        """Float32 tensors of the next head."""


class SoftmaxProbe(Probe):
    """Devices take full gradient steps of softmax regression from the global head; heads are averaged by examples."""

    form = "softmax"
    uses = Method.uses | {
        "learning_rate",
        "final_learning_rate_ratio",
        "weight_decay",
        "deploy_rounds",
        "deploy_learning_rate_ratio",
    }
    asks = "one forward pass for each example, and gradient steps of the head on its features"

    def most_bytes(self, work: Work) -> int:
        """The head in float32; see :meth:`Method.most_bytes`."""
        del work
        return 4 * sum(int(np.prod(shape)) for shape in self._shapes.values()) + HEADER_BYTES

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse a reply that is not a head of this model; see :meth:`Method.check`."""
        del work, num_examples
        check_bounds(self._manifest, probe.decode_head(blob, self._head))

    def _next_head(self, replies: Sequence[Reply]) -> dict[str, Array]:
        counted = [reply for reply in replies if reply.num_examples > 0]
        weights = np.array([reply.num_examples for reply in counted], np.float64)
        return {
            name: np.average(
                np.stack([np.asarray(reply.tensors[name], np.float64) for reply in counted]), axis=0, weights=weights
            ).astype(np.float32)
            for name in self._shapes
        }


class StatisticsProbe(Probe):
    """Devices send sums over their examples, which are added exactly in any order; the server solves for the head.

    It takes one round. The penalty is the run's ``weight_decay``, for each example.
    """

    form = "statistics"
    uses = frozenset({"rounds", "batch_size", "max_length", "weight_decay", "deploy_rounds"})
    asks = "one forward pass for each example, and sums of the products of its features"
    averages = False

    def most_bytes(self, work: Work) -> int:
        """Sums in 64-bit integers; see :meth:`Method.most_bytes`."""
        del work
        extended, num_classes = self._head.num_features + 1, self._head.num_classes
        return 8 * (extended**2 + num_classes * extended + num_classes) + HEADER_BYTES

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse a reply without sums over the reported number of examples; see :meth:`Method.check`."""
        del work
        counted = probe.decode_statistics(blob, self._head).num_examples
        if counted != num_examples:
            msg = f"sums are over {counted} examples, but the update says {num_examples}"
            raise TensorError(msg)

    def _next_head(self, replies: Sequence[Reply]) -> dict[str, Array]:
        """One device's sums are in memory at a time, beside the total."""
        each = (probe.decode_statistics(reply.read(), self._head) for reply in replies)
        try:
            gram, cross = functools.reduce(operator.add, each).as_float()
        except TensorError as error:
            msg = f"sums cannot be added: {error}"
            raise AggregationError(msg) from error
        weight, bias = self._solve(gram, cross)
        return {self._head.weight: weight.astype(np.float32), self._head.bias: bias.astype(np.float32)}

    def _solve(self, gram: Float64, cross: Float64) -> tuple[Float64, Float64]:
        """Weight and bias, from the sums of all devices."""
        return solve_ridge(gram, cross, self._context.training.weight_decay)


class LogitProbe(StatisticsProbe):
    """The same head with scores scaled to logits: a start for methods that tune it further by its loss."""

    def _solve(self, gram: Float64, cross: Float64) -> tuple[Float64, Float64]:
        weight, bias = super()._solve(gram, cross)
        scale = likelihood_scale(gram, cross, self._context.training.weight_decay, weight, bias)
        return scale * weight, scale * bias


def _probe(work: Work) -> ProbeWork:
    if not isinstance(work, ProbeWork):
        msg = f"assignment asks for {type(work).__name__}, but this run's method is a probe: start a new run"
        raise MessageError(msg)
    return work
