"""From the updates of a round to what the fleet knows after it: adapter and importance; in the background."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from broker_server.errors import AggregationError, StoreError
from broker_server.methods.aggregation import Aggregated, DeviceUpdate, change_norm, check_bounds, with_ceiling
from broker_server.methods.pruning.schedule import is_deploy
from broker_server.methods.pruning.scores import DeviceScores, Scores, combine
from broker_server.serving.coordinator.run_context import AGGREGATION, RunContext
from broker_server.serving.storage.store import Store
from broker_server.serving.storage.stored_tensors import StoredTensors
from edge_runtime.wire.messages import Update

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """What is known after a round."""

    state: Aggregated
    importance: Scores
    deltas: Mapping[str, float]
    """By device, the Frobenius norm of the change of B A that its training made."""
    discarded: str = ""
    """Why the updates of the round were not used, so that all else is as it was before; empty = they were."""
    is_unchanged: bool = False
    """Whether updates were aggregated and the adapter came out as it was before, to the last bit."""


def combine_round(
    run: RunContext, store: Store, round_number: int, before: GlobalState, accepted: Sequence[Update]
) -> GlobalState:
    """Aggregate a round and write what came out; without updates all stays as it was.

    So it does where no adapter comes out that could be sent to devices again: the run goes on from the last one, now
    and after a restart, which would aggregate the same.

    Importance comes first on disk, then the adapter; the round's record, which makes both count, comes last. Of the
    updates only those tensors are in memory that are combined at the time: of one target, of all devices.

    Raises:
        StoreError: the file of an update is damaged.
        DiskFullError: there is no space.
    """
    after = GlobalState(state=before.state, importance=before.importance, deltas={})
    if accepted:
        read = [_device_update(run, store, update) for update in accepted]
        updates = _weighed(round_number, read, run.config.max_share)
        try:
            after = _aggregate(run, round_number, before, updates)
        except (AggregationError, np.linalg.LinAlgError) as error:
            after = dataclasses.replace(after, discarded=f"aggregation failed: {error}")
    if run.config.pruning.importance == "lora":
        run.importance_files.write(round_number, after.importance)
    run.adapters.write(round_number, after.state)
    return after


def forget_round(run: RunContext, store: Store, round_number: int) -> None:
    """Undo a round whose adapter is of no use: a restart trains it again from the adapter of the round before.

    Raises:
        StoreError: the files of the round before cannot be used.
        DiskFullError: there is no space.
    """
    store.forget_round(round_number)
    run.adapters.forget(round_number)
    if run.config.pruning.importance == "lora":
        run.importance_files.write(round_number - 1, run.importance_files.open(round_number - 1))


def _weighed(round_number: int, updates: Sequence[DeviceUpdate], max_share: float) -> list[DeviceUpdate]:
    weighed = with_ceiling(updates, max_share)
    for said, counted in zip(updates, weighed, strict=True):
        if counted.num_examples < said.num_examples:
            logger.warning(
                "round %d: device %s has %d examples, beyond the max_share of one device; it counts with %d",
                round_number,
                said.device_id,
                said.num_examples,
                counted.num_examples,
            )
    return weighed


def _aggregate(run: RunContext, round_number: int, before: GlobalState, updates: Sequence[DeviceUpdate]) -> GlobalState:
    rng = run.generator(AGGREGATION, round_number)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit a float32 is found below
        state = run.aggregation.aggregate(run.manifest, before.state, updates, rng)
    check_bounds(run.manifest, state.adapter, state.merged)
    return GlobalState(
        is_unchanged=_is_same(before.state, state),
        state=state,
        importance=_importance(run, round_number, before.importance, updates),
        deltas=_deltas(run, before.state, updates),
    )


def _is_same(before: Aggregated, after: Aggregated) -> bool:
    """Whether two adapters, and what was merged beside them, are equal to the last bit."""
    return (
        before.merged.keys() == after.merged.keys()
        and before.adapter.keys() == after.adapter.keys()
        and all(np.array_equal(value, after.adapter[name]) for name, value in before.adapter.items())
        and all(
            np.array_equal(factor, other)
            for name, factors in before.merged.items()
            for factor, other in zip(factors, after.merged[name], strict=True)
        )
    )


def _importance(run: RunContext, round_number: int, before: Scores, updates: Sequence[DeviceUpdate]) -> Scores:
    pruning = run.config.pruning
    if pruning.importance != "lora" or is_deploy(pruning, round_number, run.config.training.num_rounds):
        return before
    devices = [
        DeviceScores(device_id=u.device_id, plan=u.plan, num_examples=u.num_examples, scores=u.importance)
        for u in updates
    ]
    return combine(before, devices, pruning.importance_smoothing)


def _device_update(run: RunContext, store: Store, update: Update) -> DeviceUpdate:
    key = update.key
    blob, work = store.read_update(update), run.assigner.work(key)
    if blob is None or work is None:
        msg = f"accepted update {store.update_path(key)} is damaged: resume"
        raise StoreError(msg, device_id=key.device_id, round_number=key.round_number)
    payload = run.assigner.read_update(blob, key)
    path = store.update_path(key)
    return DeviceUpdate(
        device_id=key.device_id,
        plan=work.final_plan,
        rank=work.rank,
        num_examples=update.num_examples,
        tensors=StoredTensors.of(path, blob, payload.adapter.keys()),
        importance=payload.importance,
    )


def _deltas(run: RunContext, before: Aggregated, updates: Sequence[DeviceUpdate]) -> dict[str, float]:
    """By device, how far training moved its adapter; what devices of one plan and rank started from is made once."""

    def kind(update: DeviceUpdate) -> tuple[str, int]:
        return update.plan.digest(), update.rank

    deltas = {}
    for _, same in itertools.groupby(sorted(updates, key=kind), kind):
        first, *others = same
        sent = run.aggregation.start(run.manifest, before, first.plan, first.rank).adapter
        for update in (first, *others):
            deltas[update.device_id] = change_norm(run.manifest, sent, update.tensors)
    return deltas
