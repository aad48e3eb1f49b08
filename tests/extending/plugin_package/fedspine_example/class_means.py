"""``class_means``: the server's side of a method with work of its own. The head is made of the means of the classes.

A score is ``(m x - |m|^2 / 2) / s``: minus half the squared distance of features ``x`` to a class mean ``m``, without
the part that is the same for all classes. So the nearest mean wins (Mensink et al., TPAMI 35, 2013; with sums of
devices: FedNCM, Legate et al. 2023, arXiv 2306.03937). The unit ``s`` is ours: the mean squared distance of an example
to the mean of its class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import ClassVar, Final, cast

import msgspec
import numpy as np

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import Aggregated, check_bounds
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.own_options import method_option
from broker_server.methods.presets import Preset
from broker_server.methods.pruning.scores import Scores
from edge_runtime.errors import TensorError
from edge_runtime.formats.head import Head
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.arms import PRUNING_RATIO, Axes
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, PluginWork, Work, WorkType

from .class_sums import METHOD, ClassSums, Norm, SumSettings, decode_sums

HEADER_BYTES: Final = 4096
SMALLEST_SPREAD: Final = 1e-6
"""Relative to the mean squared norm."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeansOptions:
    """Options of the method: ``--method-options largest_norm=50``, or ``[method_options]`` in ``config.toml``."""

    largest_norm: Norm = method_option("features with a larger Euclidean norm are scaled down to it", 100.0)


class ClassMeans(Method):
    """One pass of the frozen model over the examples, and one round."""

    work_type: ClassVar[WorkType] = "plugin"
    device_method: ClassVar[str] = METHOD
    device_class: ClassVar[str] = "fedspine_example.class_means_device:ClassMeans"
    asks: ClassVar[str] = "one forward pass for each example, and sums of the features of each class"
    axes: ClassVar[Axes] = Axes((PRUNING_RATIO,))
    default_arms: ClassVar[str] = "0.0"
    uses: ClassVar[frozenset[str]] = frozenset({"rounds", "batch_size", "max_length", "deploy_rounds"})
    own_options: ClassVar[type[MeansOptions]] = MeansOptions
    averages: ClassVar[bool] = False
    has_step_times: ClassVar[bool] = False

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        try:
            self._head = Head.of(context.manifest)
        except TensorError as error:
            raise ConfigError(str(error)) from error

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Work of the device's side, with its settings."""
        training, plans, ratio = self._context.training, self._context.plans, arm.pruning_ratio
        work = PluginWork(
            method=self.device_method,
            plan=plans.at(ratio).packed,
            batch_size=training.batch_size,
            max_length=training.max_length,
            settings=msgspec.to_builtins(SumSettings(largest_norm=self._context.own_options.largest_norm)),
        )
        return AssignedWork.under_one_plan(work, arm, num_steps=1, sparsity=plans.sparsity(ratio))

    def start_kind(self, work: Work) -> Hashable:
        """All devices start from the same."""
        return METHOD

    def start(self, model: Aggregated, work: Work) -> Payload:
        """The head so far, by which devices evaluate."""
        return Payload(adapter={dense.name: model.adapter[dense.name] for dense in self._manifest.dense})

    def most_bytes(self, work: Work) -> int:
        """Three tensors in float32; a larger reply is refused before it is pulled."""
        return 4 * self._head.num_classes * (self._head.num_features + 2) + HEADER_BYTES

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse sums that no examples give, or over others than the device has."""
        counted = self._decode(work, blob).counts.sum()
        if counted != num_examples:
            msg = f"sums are over {counted:.0f} examples, but the update says {num_examples}"
            raise TensorError(msg)

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """The head of the means, all else as it was."""
        each = [self._decode(reply.work, reply.read()) for reply in sorted(replies, key=lambda reply: reply.device_id)]
        features = np.sum([one.features for one in each], axis=0, dtype=np.float64)
        counts = np.sum([one.counts for one in each], axis=0, dtype=np.float64)
        num_examples = counts.sum()
        means = features / np.maximum(counts, 1)[:, None]
        means[counts == 0] = features.sum(axis=0) / num_examples  # a class of which nobody has an example
        lengths = (means**2).sum(axis=1)
        mean_square = np.sum([one.squares for one in each], dtype=np.float64) / num_examples
        spread = mean_square - counts @ lengths / num_examples
        if not spread > SMALLEST_SPREAD * mean_square:
            msg = "examples of a class do not differ, so distances to the means of classes have no unit"
            raise AggregationError(msg)
        head = {self._head.weight: means / spread, self._head.bias: -lengths / (2 * spread)}
        made = {name: value.astype(np.float32) for name, value in head.items()}
        check_bounds(self._manifest, made)
        return Combined(
            model=Aggregated(adapter={**before.adapter, **made}, merged=before.merged), importance=importance
        )

    def _decode(self, work: Work, blob: bytes) -> ClassSums:
        """Sums by the settings that were sent: a coordinator that goes on may have other options."""
        return decode_sums(blob, self._head, cast("PluginWork", work).settings_as(SumSettings).largest_norm)


CLASS_MEANS = Preset(
    label="Class means",
    about="a head of class means on frozen features: exact sums, one round",
    source="FedNCM, arXiv 2306.03937, like",
    work=ClassMeans,
    settings=lambda _: {"scheduler": "fixed", "importance": "magnitude", "rounds": 1, "local_steps": 1},
)
