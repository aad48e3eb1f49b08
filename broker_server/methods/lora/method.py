"""Federated LoRA on pruned slices: plans for the steps of an arm, and one adapter from adapters under many plans."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

import numpy as np

from broker_server.methods.aggregation import Aggregated, DeviceUpdate, change_norm, check_bounds, make_aggregation
from broker_server.methods.lora.tensors import Named, importance_of
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.schedule import Segment, segments
from broker_server.methods.pruning.scores import DeviceScores, Scores, combine
from broker_server.methods.training import TrainingConfig
from broker_server.options import options_of
from edge_runtime.errors import MessageError
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, Array, target_indices
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload
from edge_runtime.formats.plan import PackedPlan, Plan
from edge_runtime.wire.arms import LORA_AXES, Axes
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, LoraWork, Pruning, Work

HEADER_BYTES_PER_TENSOR: Final = 512
"""Allowance for a tensor's entry in a safetensors header; names are module paths."""

MAX_PLAN_BYTES: Final = 64 * 1024
"""Most bytes of all plans of one assignment, which is one message (96 KB at most)."""

NUM_PLANS: Final = 64
"""Most opened plans, and layouts of plan and rank, that are cached: enough for a round."""


class Lora(Method):
    """The method of FedSpine and of other LoRA presets; they differ in aggregation, scheduler and pruning."""

    asks: ClassVar[str] = (
        "forward and backward passes over the sliced model, AdamW on its LoRA factors and on a classifier's head"
    )
    axes: ClassVar[Axes] = LORA_AXES
    default_arms: ClassVar[str] = "0.0:8,0.25:8,0.5:4"
    uses: ClassVar[frozenset[str]] = frozenset({"aggregation", *options_of(TrainingConfig), *options_of(PruningConfig)})

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._aggregation = make_aggregation(context.aggregation)
        self._targets = {
            name: target
            for target in context.manifest.targets
            for name in (names.lora_a(target.module), names.lora_b(target.module))
        }
        self._opened = functools.lru_cache(maxsize=NUM_PLANS)(self._open)
        self._layout = functools.lru_cache(maxsize=NUM_PLANS)(self._layout_of)

    # ---- assignments -------------------------------------------------------------------------------------------------

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Plans along the ramp, and hyper-parameters; see :meth:`Method.ask`."""
        del model
        training, pruning, plans = self._context.training, self._context.pruning, self._context.plans
        number, num_steps = key.round_number, training.num_local_steps
        is_deploy = self._context.is_deploy(number)
        if at_once or is_deploy:
            parts: tuple[Segment, ...] = (Segment(at_step=1, pruning_ratio=arm.pruning_ratio),)
        else:
            parts = _fitting(segments(pruning, arm.pruning_ratio, number, num_steps), self._manifest)
        return AssignedWork(
            work=LoraWork(
                arm=arm,
                plan=plans.at(parts[0].pruning_ratio).packed,
                hyper_parameters=self._context.hyper_parameters(
                    number,
                    key.device_id,
                    importance_every_steps=pruning.importance_every_steps if pruning.importance == "lora" else 0,
                    trainable=self._aggregation.trainable,
                ),
                prunings=tuple(
                    Pruning(at_step=part.at_step, plan=plans.at(part.pruning_ratio).packed) for part in parts[1:]
                ),
            ),
            arm=arm,
            segments=parts,
            start_sparsity=plans.sparsity(parts[0].pruning_ratio),
            sparsity=plans.sparsity(parts[-1].pruning_ratio),
            num_steps=num_steps,
            is_deploy=is_deploy,
        )

    def start_kind(self, work: Work) -> Hashable:
        """Plan and rank; see :meth:`Method.start_kind`."""
        asked = _lora(work)
        return asked.plan, asked.arm.rank

    def start(self, model: Aggregated, work: Work) -> Payload:
        """The adapter under the first plan and the rank, and merged factors; see :meth:`Method.start`."""
        asked = _lora(work)
        return self._aggregation.start(self._manifest, model, self._opened(asked.plan), asked.arm.rank)

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """The trained tensors of the adapter under the last plan; see :meth:`Method.trained`."""
        asked = _lora(work)
        layout, _ = self._layout(asked.final_plan, asked.arm.rank)
        return layout.trained(self._aggregation.trainable).shapes

    def before(self, model: Aggregated, work: Work, name: str) -> Array:
        """The part of the adapter under the last plan and the rank; see :meth:`Method.before`."""
        asked, whole, target = _lora(work), model.adapter[name], self._targets.get(name)
        if target is None:
            return whole
        rows, columns = target_indices(target, self._opened(asked.final_plan))
        if names.is_lora_a(name):
            return whole[: asked.arm.rank] if columns is None else whole[: asked.arm.rank, columns]
        return whole[:, : asked.arm.rank] if rows is None else whole[rows, : asked.arm.rank]

    # ---- replies -----------------------------------------------------------------------------------------------------

    def most_bytes(self, work: Work) -> int:
        """An adapter and its importance, in float32; see :meth:`Method.most_bytes`."""
        asked = _lora(work)
        return self._layout(asked.final_plan, asked.arm.rank)[1]

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse a reply that is not an adapter under the assignment's last plan; see :meth:`Method.check`."""
        del num_examples
        asked, payload = _lora(work), decode_payload(blob)
        check_payload(
            self._manifest,
            self._opened(asked.final_plan),
            asked.arm.rank,
            payload,
            is_update=True,
            trainable=self._aggregation.trainable,
            layout=self._layout(asked.final_plan, asked.arm.rank)[0],
        )
        check_bounds(self._manifest, payload.adapter)

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """Aggregate adapters and importance; see :meth:`Method.combine`.

        Only the tensors of one target, of all devices, are in memory at a time.
        """
        updates = [self._device_update(reply) for reply in replies]
        with np.errstate(over="ignore", invalid="ignore"):  # check_bounds finds values that do not fit a float32
            model = self._aggregation.aggregate(self._manifest, before, updates, rng)
        check_bounds(self._manifest, model.adapter, model.merged)
        return Combined(
            model=model,
            importance=self._importance(round_number, importance, updates),
            deltas=self._deltas(before, updates),
        )

    def _device_update(self, reply: Reply) -> DeviceUpdate:
        asked = _lora(reply.work)
        return DeviceUpdate(
            device_id=reply.device_id,
            plan=self._opened(asked.final_plan),
            rank=asked.arm.rank,
            num_examples=reply.num_examples,
            tensors=Named(reply.tensors, self.trained(asked)),
            importance=importance_of(reply.tensors),
            is_checked=True,
        )

    def _importance(self, round_number: int, before: Scores, updates: Sequence[DeviceUpdate]) -> Scores:
        pruning = self._context.pruning
        if pruning.importance != "lora" or self._context.is_deploy(round_number):
            return before
        devices = [
            DeviceScores(device_id=u.device_id, plan=u.plan, num_examples=u.num_examples, scores=u.importance)
            for u in updates
        ]
        return combine(before, devices, pruning.importance_smoothing)

    def _deltas(self, before: Aggregated, updates: Sequence[DeviceUpdate]) -> dict[str, float]:
        """Change of each device's adapter by training; the initial adapter is made once for each plan and rank."""

        def kind(update: DeviceUpdate) -> tuple[str, int]:
            return update.plan.packed.digest(), update.rank

        deltas = {}
        for _, same in itertools.groupby(sorted(updates, key=kind), kind):
            first, *others = same
            sent = self._aggregation.start(self._manifest, before, first.plan, first.rank).adapter
            for update in (first, *others):
                deltas[update.device_id] = change_norm(self._manifest, sent, update.tensors)
        return deltas

    def _open(self, plan: PackedPlan) -> Plan:
        return plan.open(self._manifest)

    def _layout_of(self, packed: PackedPlan, rank: int) -> tuple[AdapterLayout, int]:
        """Layout of an update, and its largest size in bytes."""
        plan = self._opened(packed)
        layout = AdapterLayout.of(self._manifest, plan, rank)
        num_scores = sum(units.size for units in plan.units.values())
        num_tensors = 1 + len(layout.shapes) + len(self._manifest.groups)
        return layout, 4 * (layout.num_elements + num_scores) + HEADER_BYTES_PER_TENSOR * num_tensors


def _lora(work: Work) -> LoraWork:
    if not isinstance(work, LoraWork):
        msg = f"assignment asks for {type(work).__name__}, but this run's method is lora: start a new run"
        raise MessageError(msg)
    return work


def _fitting(parts: tuple[Segment, ...], manifest: Manifest) -> tuple[Segment, ...]:
    """The last segments whose plans fit a message; the first of them then starts at step 1."""
    plan_bytes = sum(64 + (group.num_units + 7) // 8 for group in manifest.groups)
    kept = parts[-max(1, MAX_PLAN_BYTES // plan_bytes) :]
    return (Segment(at_step=1, pruning_ratio=kept[0].pruning_ratio), *kept[1:])
