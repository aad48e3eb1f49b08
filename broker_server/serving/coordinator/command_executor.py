"""Carries out the commands of the state machine: assignments, verdicts, aggregation, evaluation, records."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading

from broker_server.errors import StoreError, TrainingDivergedError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    AnswerOldUpdate,
    ArmsChosen,
    ChooseArmAgain,
    ChooseArms,
    Command,
    Evaluate,
    EvaluationDone,
    Event,
    FinishRound,
    PullUpdate,
    RunState,
    SendAssignment,
    SendCancel,
    SendVerdict,
)
from broker_server.serving.coordinator.arm_selection import ArmSelection
from broker_server.serving.coordinator.combining import GlobalState, combine_round, forget_round
from broker_server.serving.coordinator.device_channel import DeviceChannel
from broker_server.serving.coordinator.ledger import Ledger, Made, Quality
from broker_server.serving.coordinator.message_translator import MessageTranslator
from broker_server.serving.coordinator.run_context import RunContext
from broker_server.serving.evaluation.held_out import finite
from broker_server.serving.storage.records import EvaluationRecord, FileDigests, KeptRecord
from broker_server.serving.storage.rows import SchedulerState
from broker_server.serving.storage.store import Store
from edge_runtime.formats.plan import Plan
from edge_runtime.system.background import Background
from edge_runtime.wire.messages import AssignmentKey, Cancel, Verdict

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """The result of a background job."""

    event: AggregationDone | EvaluationDone
    global_state: GlobalState | None = None
    quality: Quality | None = None


class CommandExecutor:
    """Executes commands in the thread of the event loop; long work runs in the background."""

    def __init__(
        self, run: RunContext, store: Store, ledger: Ledger, channel: DeviceChannel, translator: MessageTranslator
    ) -> None:
        self._run = run
        self._store = store
        self._ledger = ledger
        self._channel = channel
        self._translator = translator
        self._background: Background[_Done] = Background()
        self._arms = ArmSelection(run, ledger, store.load_refusers())
        model = run.adapters.read(ledger.last_finished or 0)
        self._global_state = GlobalState(model=model, importance=run.importance)
        self._quality = Quality()

    @property
    def is_busy(self) -> bool:
        """Return whether a background job is under way."""
        return self._background.is_busy

    def take_scheduler_state(self) -> SchedulerState | None:
        """Return the scheduler's state if it changed since the last call, else None; the caller must write it."""
        if not self._arms.has_news:
            return None
        self._arms.has_news = False
        return SchedulerState(scheduler=self._run.scheduler.name, state=self._run.scheduler.to_json())

    def execute(self, state: RunState, command: Command) -> list[Event]:
        """Carry out a command; return the answers that are known at once."""
        match command:
            case ChooseArms(round_number=round_number, device_ids=device_ids):
                return [ArmsChosen(round_number=round_number, arms=self._arms.choose(round_number, device_ids))]
            case ChooseArmAgain(round_number=round_number, device_id=device_id):
                arm = self._arms.choose_again(round_number, state.participants[device_id])
                return [ArmsChosen(round_number=round_number, arms={device_id: arm})]
            case PullUpdate(key=key):
                return self._translator.pull(state, key)
            case Aggregate():
                self._aggregate(state, command)
            case Evaluate():
                return self._evaluate(command)
            case FinishRound():
                self._finish_round(command)
            case _:
                self._send(command)
        return []

    def poll(self) -> list[Event]:
        """Return the answer of a background job that has just finished, or raise its exception."""
        try:
            ended = self._background.poll()
            done = None if ended is None else ended.result()
        except TrainingDivergedError as error:
            forget_round(self._run, self._store, error.round_number or 0)
            raise
        if done is None:
            return []
        if done.global_state is not None:
            self._global_state = done.global_state
            if done.global_state.discarded:
                self._ledger.updates_discarded(done.event.round_number, done.global_state.discarded)
            self._run.plans.use(done.global_state.importance)
        if done.quality is not None:
            self._quality = done.quality
        return [done.event]

    # ---- to devices --------------------------------------------------------------------------------------------------

    def _send(self, command: Command) -> None:
        match command:
            case SendAssignment():
                self._assign(command)
            case SendVerdict(key=key, accepted=accepted, detail=detail):
                self._translator.forget(key)
                self._verdict(key, accepted=accepted, detail=detail)
            case AnswerOldUpdate(key=key):
                accepted = self._store.is_accepted(key)
                self._verdict(key, accepted=accepted, detail="" if accepted else f"round {key.round_number} is over")
            case SendCancel(key=key, detail=detail):
                self._translator.forget(key)
                self._channel.to(key.device_id, Cancel(key=key, detail=detail))
            case _:
                msg = f"no way to execute {command}"
                raise TypeError(msg)

    def _verdict(self, key: AssignmentKey, *, accepted: bool, detail: str) -> None:
        self._channel.to(key.device_id, Verdict(key=key, accepted=accepted, detail=detail))

    def _assign(self, command: SendAssignment) -> None:
        """Queue an assignment; its work is on disk before it is sent, so that its update can be read later."""
        assigner, key = self._run.assigner, command.key
        at_once = self._arms.plays_at_once(key.device_id)
        is_known = assigner.work(key) is not None
        assignment, blob = assigner.assign(command, self._global_state.model, at_once=at_once)
        if assignment.payload is not None:
            self._channel.offer(assignment.payload, blob)
        num_bytes = self._channel.to(key.device_id, assignment)
        if not is_known:
            most = self._translator.most_examples(key.device_id)
            bytes_down = len(blob) + num_bytes
            work = assigner.sent(key, self._ledger.assigned(key), bytes_down=bytes_down, most_examples=most)
            self._store.save_work(key, work)

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _aggregate(self, state: RunState, command: Aggregate) -> None:
        participants = (state.participants[key.device_id] for key in command.keys)
        accepted = [update for p in participants if (update := self._ledger.accepted(p)) is not None]
        if len(accepted) != len(command.keys):
            msg = f"round {command.round_number}: {len(command.keys)} updates count, {len(accepted)} are on disk"
            raise StoreError(msg, round_number=command.round_number)
        accepted += self._ledger.standing_beside(command.keys)
        before = self._global_state

        def job(_stop: threading.Event) -> _Done:
            global_state = combine_round(self._run, self._store, command.round_number, before, accepted)
            event = AggregationDone(round_number=command.round_number, discarded=global_state.discarded)
            return _Done(event=event, global_state=global_state)

        self._background.start(command, job)

    def _evaluate(self, command: Evaluate) -> list[Event]:
        self._quality = Quality()
        held_out, event = self._run.held_out, EvaluationDone(round_number=command.round_number)
        if held_out is None:
            return [event]
        config, adapters, model = self._run.config, self._run.adapters, self._global_state.model
        manifest = self._run.manifest
        sub_model = None
        if config.sparsity is not None and (command.is_last or config.eval_sparse):
            sub_model = self._run.plans.at(config.sparsity)

        def measure(measured: Aggregated, plan: Plan | None) -> EvaluationRecord:
            return held_out.evaluate(
                measured,
                adapters.rank,
                adapters.lora_scaling,
                use_all=command.is_last,
                num_threads=config.num_threads,
                plan=plan,
            )

        def cut(number: int, measured: Aggregated, whole: EvaluationRecord) -> EvaluationRecord | None:
            """Quality of the sub-model; without pruning it is the whole model, which is not measured twice."""
            if sub_model is None or config.sparsity == 0.0:
                return None if sub_model is None else whole
            return _known(number, measure(measured, sub_model))

        def job(_stop: threading.Event) -> _Done:
            full = finite(command.round_number, measure(model, None))
            sparse = cut(command.round_number, model, full)
            kept, best = None, self._ledger.best_round(command.round_number, full, manifest.task)
            if command.is_last and config.keep == "best" and best != command.round_number:
                state_of_best = adapters.keep(best)
                whole = measure(state_of_best, None)
                sparse_of_best = cut(best, state_of_best, whole)
                kept = KeptRecord(round_number=best, evaluation=whole.best_known, sparse=sparse_of_best)
            return _Done(event=event, quality=Quality(full=full, sparse=sparse, kept=kept))

        self._background.start(command, job)
        return []

    def _finish_round(self, command: FinishRound) -> None:
        number = command.round_number
        devices, emulated_s = self._arms.finish(number, command.participants, self._global_state)
        self._ledger.finish_round(
            number,
            devices,
            self._quality,
            self.take_scheduler_state(),
            Made(
                files=FileDigests(
                    adapter=self._run.adapters.digest(number), importance=self._run.importance_files.digest
                ),
                discarded=self._global_state.discarded,
                is_unchanged=self._global_state.is_unchanged,
                num_standing=self._global_state.num_standing,
            ),
            emulated_s=emulated_s,
            is_deploy=number > 0 and self._run.is_deploy(number),
        )
        for digest in self._run.assigner.clear():
            self._channel.withdraw(digest)


def _known(round_number: int, sparse: EvaluationRecord) -> EvaluationRecord | None:
    """Quality of a sub-model; None if its loss is not finite."""
    loss = sparse.best_known.loss
    if math.isfinite(loss):
        return sparse
    logger.warning("round %d: the sub-model's loss is %s: not kept", round_number, loss)
    return None
