"""Combines the updates of a round into the next model and importance, in the background."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from broker_server.errors import AggregationError, StoreError
from broker_server.methods.aggregation import Aggregated, with_ceiling
from broker_server.methods.method import Reply
from broker_server.methods.pruning.scores import Scores
from broker_server.serving.coordinator.run_context import AGGREGATION, TRANSFORMS, RunContext
from broker_server.serving.storage.store import Store
from broker_server.serving.storage.stored_tensors import StoredTensors
from edge_runtime.formats.transforms import Change, apply_transforms
from edge_runtime.wire.messages import Update

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """The model, importance and figures after a round."""

    model: Aggregated
    importance: Scores
    num_standing: int = 0
    """Updates of earlier rounds that were combined too."""
    deltas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Frobenius norm of the change of B A by training, by device."""
    not_finite: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of scalars that were not finite, by device."""
    discarded: str = ""
    """Reason why the round's updates were not used and the model is unchanged; empty = they were used."""
    is_unchanged: bool = False
    """Whether updates were aggregated and did not change the model by a single bit."""


def combine_round(
    run: RunContext, store: Store, round_number: int, before: GlobalState, accepted: Sequence[Update]
) -> GlobalState:
    """Combine the updates of a round, and those that stand, and write the result; without updates nothing changes.

    The model is also unchanged if the result cannot be sent to devices: the run goes on from the last model. A restart
    would give the same result.

    Importance comes first on disk, then the adapter; the round's record, which makes both count, comes last. Tensors of
    updates are read from disk when the method asks for them.

    Raises:
        StoreError: the file of an update is damaged.
        DiskFullError: there is no space.
    """
    after = GlobalState(model=before.model, importance=before.importance)
    if accepted:
        replies = [_reply(run, store, update) for update in accepted]
        if run.method.is_averaged(replies[0].work):
            replies = _weighed(round_number, replies, run.config.max_share)
        replies = [_transformed(run, round_number, before.model, reply) for reply in replies]
        try:
            after = _combine(run, round_number, before, replies)
        except (AggregationError, np.linalg.LinAlgError) as error:
            after = dataclasses.replace(after, discarded=f"aggregation failed: {error}")
    if run.config.pruning.importance == "lora":
        run.importance_files.write(round_number, after.importance)
    run.adapters.write(round_number, after.model)
    num_standing = sum(update.key.round_number != round_number for update in accepted)
    return dataclasses.replace(after, num_standing=num_standing)


def forget_round(run: RunContext, store: Store, round_number: int) -> None:
    """Undo a round with an unusable adapter: a restart trains the round again from the adapter before it.

    Raises:
        StoreError: the files of the round before cannot be used.
        DiskFullError: there is no space.
    """
    store.forget_round(round_number, keep_updates=run.method.asks_once)
    run.adapters.forget(round_number)
    if run.config.pruning.importance == "lora":
        run.importance_files.write(round_number - 1, run.importance_files.open(round_number - 1))


def _weighed(round_number: int, replies: Sequence[Reply], max_share: float) -> list[Reply]:
    weights = with_ceiling([reply.num_examples for reply in replies], max_share)
    for reply, weight in zip(replies, weights, strict=True):
        if weight < reply.num_examples:
            logger.warning(
                "round %d: device %s has %d examples, beyond the max_share of one device; it counts with %d",
                round_number,
                reply.device_id,
                reply.num_examples,
                weight,
            )
    return [dataclasses.replace(r, num_examples=weight) for r, weight in zip(replies, weights, strict=True)]


def _transformed(run: RunContext, round_number: int, before: Aggregated, reply: Reply) -> Reply:
    """A reply after the run's chain of update transforms."""
    if not run.transforms:
        return reply
    change = Change(
        tensors=reply.tensors,
        start=functools.partial(run.method.before, before, reply.work),
        shapes=run.method.trained(reply.work),
    )
    seed = (run.config.seed, TRANSFORMS, round_number)
    return dataclasses.replace(reply, tensors=apply_transforms(run.transforms, change, seed, reply.device_id))


def _combine(run: RunContext, round_number: int, before: GlobalState, replies: Sequence[Reply]) -> GlobalState:
    rng = run.generator(AGGREGATION, round_number)
    combined = run.method.combine(round_number, before.model, before.importance, replies, rng)
    return GlobalState(
        model=combined.model,
        importance=combined.importance,
        deltas=combined.deltas,
        not_finite=combined.not_finite,
        is_unchanged=_is_same(before.model, combined.model),
    )


def _is_same(before: Aggregated, after: Aggregated) -> bool:
    """Return whether two adapters, and the factors merged beside them, are equal to the last bit."""
    return (
        before.pool == after.pool
        and before.merged.keys() == after.merged.keys()
        and before.adapter.keys() == after.adapter.keys()
        and all(np.array_equal(value, after.adapter[name]) for name, value in before.adapter.items())
        and all(
            np.array_equal(factor, other)
            for name, factors in before.merged.items()
            for factor, other in zip(factors, after.merged[name], strict=True)
        )
    )


def _reply(run: RunContext, store: Store, update: Update) -> Reply:
    key = update.key
    blob, assigned = store.read_update(update), run.assigner.work(key)
    path = store.update_path(key)
    if blob is None or assigned is None:
        msg = f"accepted update {path} is damaged: resume"
        raise StoreError(msg, device_id=key.device_id, round_number=key.round_number)
    return Reply(
        device_id=key.device_id,
        work=assigned.work,
        num_examples=update.num_examples,
        tensors=StoredTensors.of(path, blob),
        read=path.read_bytes,
    )
