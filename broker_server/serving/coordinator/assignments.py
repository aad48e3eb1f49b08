"""From an arm to an assignment: plans, restricted adapter, hyper-parameters; and what an update to it must look like.

Plans follow the importance of the day, so what was asked for is kept for each assignment, on disk too: an update is
read under the plans that were *sent*, also by a coordinator that was restarted in between.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from broker_server.config import CoordinatorConfig
from broker_server.methods.aggregation import Aggregated, Aggregation
from broker_server.methods.pruning.schedule import Segment, is_deploy, segments
from broker_server.methods.rounds.types import SendAssignment
from broker_server.serving.storage.records import AssignedWork
from edge_runtime.errors import MessageError
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload, check_payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import Importance, plan_at
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, BlobRef, encode_message
from edge_runtime.wire.work import HyperParameters, LoraWork, Pruning

HEADER_BYTES_PER_TENSOR = 512
"""Allowance for a tensor's entry in a safetensors header; names are module paths."""

MAX_PLAN_BYTES: Final = 64 * 1024
"""All plans of one assignment together, which is one message (96 KB at most)."""


class Assigner:
    """Plans and blobs of one run; a plan is made once for each ratio and importance, a blob once in a round."""

    def __init__(
        self,
        config: CoordinatorConfig,
        manifest: Manifest,
        importance: Importance,
        aggregation: Aggregation,
        *,
        works: Mapping[AssignmentKey, AssignedWork] | None = None,
    ) -> None:
        """Start from what is known.

        Args:
            config: of the run.
            manifest: of the artifact.
            importance: scores that rank the units now.
            aggregation: says what devices start from, train and send back.
            works: assignments of a round that had begun.
        """
        self._config = config
        self._manifest = manifest
        self._importance = importance
        self._aggregation = aggregation
        self._works = dict(works or {})
        self._plans: dict[float, Plan] = {}
        self._blobs: dict[tuple[str, int], tuple[BlobRef, bytes]] = {}
        self._layouts: dict[tuple[int, int], tuple[Plan, AdapterLayout, int]] = {}
        """By identity of a plan (which is kept, so that it stays one) and rank: layout, and most bytes of an update."""

    def use(self, importance: Importance) -> None:
        """Rank units by other scores from now on; what was assigned stays as it is."""
        self._importance = importance
        self._plans.clear()

    def plan(self, pruning_ratio: float) -> Plan:
        """The plan of a ratio, under the importance of now."""
        if pruning_ratio not in self._plans:
            policy = self._config.pruning.policy
            self._plans[pruning_ratio] = plan_at(self._manifest, self._importance, pruning_ratio, policy)
        return self._plans[pruning_ratio]

    def work(self, key: AssignmentKey) -> AssignedWork | None:
        """What was assigned under ``key`` in this round; None = nothing was sent yet."""
        return self._works.get(key)

    def assign(
        self, command: SendAssignment, start: Aggregated, *, at_once: bool
    ) -> tuple[AssignedWork, BlobRef, bytes]:
        """What a device is to do, and the blob that it starts from; the same when it is asked for again.

        Args:
            command: the assignment.
            start: what all devices of the round start from.
            at_once: whether the arm's ratio is played in full from the first step on, without a ramp.
        """
        known = self._works.get(command.key)
        work = known or self._new_work(command, at_once=at_once)
        cached = (work.plans[0].digest(), work.rank)
        if cached not in self._blobs:
            payload = self._aggregation.start(self._manifest, start, work.plans[0], work.rank)
            data = encode_payload(payload, self._config.wire_dtype)
            self._blobs[cached] = chunks.describe(data), data
        ref, blob = self._blobs[cached]
        if known is None:
            num_bytes = len(blob) + len(encode_message(self.message(command, work, ref)))
            work = msgspec.structs.replace(work, bytes_down=num_bytes)
            self._works[command.key] = work
        return work, ref, blob

    def sent(self, key: AssignmentKey, sent_at: float, most_examples: int | None) -> AssignedWork:
        """Note when an assignment goes out, and how many examples its device has by then."""
        work = msgspec.structs.replace(self._assigned(key), sent_at=sent_at, most_examples=most_examples)
        self._works[key] = work
        return work

    def clear(self) -> tuple[str, ...]:
        """Forget the assignments and blobs of a round that is over; returns the blobs' digests."""
        digests = tuple(ref.digest for ref, _ in self._blobs.values())
        self._blobs.clear()
        self._works.clear()
        self._layouts.clear()
        return digests

    def message(self, command: SendAssignment, work: AssignedWork, ref: BlobRef) -> Assignment:
        """What is sent to the device."""
        key = command.key
        later = zip(work.segments[1:], work.plans[1:], strict=True)
        return Assignment(
            key=key,
            deadline_s=command.deadline_s,
            payload=ref,
            work=LoraWork(
                arm=command.arm,
                plan=work.plans[0],
                hyper_parameters=self._hyper_parameters(key.round_number, key.device_id),
                prunings=tuple(Pruning(at_step=segment.at_step, plan=plan) for segment, plan in later),
            ),
        )

    def check_size(self, blob: BlobRef, key: AssignmentKey) -> None:
        """Refuse the blob of an update that is larger than any answer to its assignment, before anything is pulled.

        Raises:
            MessageError: it is, or nothing was assigned.
        """
        _, most = self._layout(self._assigned(key))
        if blob.size_bytes > most:
            msg = f"update is {blob.size_bytes} bytes, at most {most} are expected"
            raise MessageError(msg, device_id=key.device_id, round_number=key.round_number)

    def read_update(self, blob: bytes, key: AssignmentKey) -> Payload:
        """The tensors of an update, under the last plan that was sent.

        Raises:
            TensorError: malformed, or other names, shapes or values than were asked for.
            MessageError: nothing was assigned.
        """
        work, payload = self._assigned(key), decode_payload(blob)
        layout, _ = self._layout(work)
        check_payload(
            self._manifest,
            work.final_plan,
            work.rank,
            payload,
            is_update=True,
            trainable=self._aggregation.trainable,
            layout=layout,
        )
        return payload

    def _layout(self, work: AssignedWork) -> tuple[AdapterLayout, int]:
        """Layout of an update without what is not trained, and the most bytes that it may have."""
        plan = work.final_plan
        known = self._layouts.get((id(plan), work.rank))
        if known is None:
            layout = AdapterLayout.of(self._manifest, plan, work.rank)
            num_scores = sum(plan.kept(g.layer, g.group).size for g in self._manifest.groups)
            num_tensors = 1 + len(layout.shapes) + len(self._manifest.groups)
            most = 4 * (layout.num_elements + num_scores) + HEADER_BYTES_PER_TENSOR * num_tensors
            known = self._layouts[id(plan), work.rank] = plan, layout, most
        return known[1], known[2]

    def _assigned(self, key: AssignmentKey) -> AssignedWork:
        work = self._works.get(key)
        if work is None:
            msg = f"no assignment was sent to {key.device_id} in round {key.round_number} as attempt {key.attempt}"
            raise MessageError(msg, device_id=key.device_id, round_number=key.round_number)
        return work

    def _new_work(self, command: SendAssignment, *, at_once: bool) -> AssignedWork:
        config, number = self._config, command.key.round_number
        num_steps, ratio = config.training.num_local_steps, command.arm.pruning_ratio
        if at_once or is_deploy(config.pruning, number, config.training.num_rounds):
            parts: tuple[Segment, ...] = (Segment(at_step=1, pruning_ratio=ratio),)
        else:
            parts = _fitting(segments(config.pruning, ratio, number, num_steps), self._manifest)
        return AssignedWork(
            rank=command.arm.rank,
            segments=parts,
            plans=tuple(self.plan(part.pruning_ratio) for part in parts),
            num_local_steps=num_steps,
            bytes_down=0,
        )

    def _hyper_parameters(self, round_number: int, device_id: str) -> HyperParameters:
        training, pruning = self._config.training, self._config.pruning
        entropy = (self._config.seed, round_number, zlib.crc32(device_id.encode()))
        return HyperParameters(
            learning_rate=self._config.learning_rate_at(round_number),
            weight_decay=training.weight_decay,
            lora_scaling=training.lora_scaling,
            max_grad_norm=training.max_grad_norm,
            num_warmup_steps=training.num_warmup_steps,
            num_local_steps=training.num_local_steps,
            batch_size=training.batch_size,
            num_accumulation_steps=training.num_accumulation_steps,
            max_length=training.max_length,
            seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
            importance_every_steps=pruning.importance_every_steps if pruning.importance == "lora" else 0,
            class_balance=training.class_balance,
            trainable=self._aggregation.trainable,
        )


def _fitting(parts: tuple[Segment, ...], manifest: Manifest) -> tuple[Segment, ...]:
    """The last of the segments, as many as fit a message with their plans; the first of them from step 1 on."""
    plan_bytes = sum(64 + (group.num_units + 7) // 8 for group in manifest.groups)
    kept = parts[-max(1, MAX_PLAN_BYTES // plan_bytes) :]
    return (Segment(at_step=1, pruning_ratio=kept[0].pruning_ratio), *kept[1:])
