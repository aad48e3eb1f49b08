"""What the state machine commands, done: assignments, verdicts, aggregation, evaluation, records."""

from __future__ import annotations

import dataclasses
import logging

from broker_server.aggregation import Aggregated, DeviceUpdate
from broker_server.background import Background
from broker_server.errors import StoreError
from broker_server.intake import Intake
from broker_server.ledger import Ledger
from broker_server.mailroom import Mailroom
from broker_server.outcomes import arm_outcome
from broker_server.parts import AGGREGATION, ARMS, Run
from broker_server.records import EvaluationRecord
from broker_server.round_types import (
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
    Participant,
    PullUpdate,
    RunState,
    SendAssignment,
    SendCancel,
    SendVerdict,
    UpdateKey,
)
from broker_server.rounds import MAX_ATTEMPTS
from broker_server.scheduler import ArmOutcome
from broker_server.store import Learnt, Store
from edge_runtime.wire.messages import Arm, Cancel, FailureReason, Update, Verdict

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What a background job brings back."""

    event: Event
    adapter: Aggregated | None = None
    evaluation: EvaluationRecord | None = None


class Office:
    """The way out. Belongs to the thread of the event loop; long work goes to the background."""

    def __init__(self, run: Run, store: Store, ledger: Ledger, mailroom: Mailroom, intake: Intake) -> None:
        self._run = run
        self._store = store
        self._ledger = ledger
        self._mailroom = mailroom
        self._intake = intake
        self._background: Background[_Done] = Background()
        self._adapter = run.adapters.read(ledger.last_finished or 0)
        self._evaluation: EvaluationRecord | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a background job is under way."""
        return self._background.is_busy

    def learnt(self) -> Learnt:
        """What the scheduler knows by now."""
        return Learnt(scheduler=self._run.scheduler.name, state=self._run.scheduler.state())

    def execute(self, state: RunState, command: Command) -> list[Event]:
        """Do what a command says; the answers that are known at once."""
        match command:
            case ChooseArms(round_number=round_number, device_ids=device_ids):
                rng = self._run.generator(ARMS, round_number)
                arms: dict[str, Arm | None] = dict(self._run.scheduler.choose(round_number, device_ids, rng))
                return [ArmsChosen(round_number=round_number, arms=arms)]
            case ChooseArmAgain():
                return [self._choose_again(state, command)]
            case PullUpdate(key=key):
                return self._intake.pull(state, key)
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
        """The answer of a background job that has just finished; raises what it raised."""
        done = self._background.poll()
        if done is None:
            return []
        if done.adapter is not None:
            self._adapter = done.adapter
        if done.evaluation is not None:
            self._evaluation = done.evaluation
        return [done.event]

    # ---- to devices --------------------------------------------------------------------------------------------------

    def _send(self, command: Command) -> None:
        match command:
            case SendAssignment(key=key, arm=arm):
                ref, blob = self._run.assigner.blob(arm, self._adapter.adapter)
                self._mailroom.offer(ref, blob)
                self._mailroom.to(key.device_id, self._run.assigner.message(command, ref))
            case SendVerdict(key=key, accepted=accepted, detail=detail):
                self._intake.forget(key)
                self._verdict(key, accepted=accepted, detail=detail)
            case AnswerOldUpdate(key=key):
                accepted = self._store.is_accepted(key)
                self._verdict(key, accepted=accepted, detail="" if accepted else f"round {key.round_number} is over")
            case SendCancel(key=key, detail=detail):
                self._intake.forget(key)
                cancel = Cancel(
                    run_id=self._run.config.run_id,
                    device_id=key.device_id,
                    round_number=key.round_number,
                    attempt=key.attempt,
                    detail=detail,
                )
                self._mailroom.to(key.device_id, cancel)
            case _:
                msg = f"no way to execute {command}"
                raise TypeError(msg)

    def _verdict(self, key: UpdateKey, *, accepted: bool, detail: str) -> None:
        verdict = Verdict(
            run_id=self._run.config.run_id,
            device_id=key.device_id,
            round_number=key.round_number,
            attempt=key.attempt,
            accepted=accepted,
            detail=detail,
        )
        self._mailroom.to(key.device_id, verdict)

    # ---- scheduler ---------------------------------------------------------------------------------------------------

    def _choose_again(self, state: RunState, command: ChooseArmAgain) -> Event:
        self._run.scheduler.observe(self._outcome(command.round_number, state.participants[command.device_id]))
        rng = self._run.generator(ARMS, command.round_number)
        arm = self._run.scheduler.choose_again(command.round_number, command.device_id, rng)
        return ArmsChosen(round_number=command.round_number, arms={command.device_id: arm})

    def _outcome(self, round_number: int, participant: Participant) -> ArmOutcome:
        sparsity = self._run.assigner.sparsity(participant.arm)
        return arm_outcome(round_number, participant, sparsity, self._ledger.accepted(participant))

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _aggregate(self, state: RunState, command: Aggregate) -> None:
        accepted = [
            (participant.arm, update)
            for participant in (state.participants[key.device_id] for key in command.keys)
            if (update := self._ledger.accepted(participant)) is not None
        ]
        if len(accepted) != len(command.keys):
            msg = f"round {command.round_number}: {len(command.keys)} updates count, {len(accepted)} are on disk"
            raise StoreError(msg, round_number=command.round_number)
        before = self._adapter
        self._background.start(lambda: self._combine(command.round_number, before, accepted))

    def _combine(self, round_number: int, before: Aggregated, accepted: list[tuple[Arm, Update]]) -> _Done:
        """In the background: the round's global adapter, on disk; without updates it is the one before."""
        adapter = before
        if accepted:
            updates = [self._device_update(arm, update) for arm, update in accepted]
            rng = self._run.generator(AGGREGATION, round_number)
            adapter = self._run.aggregation.aggregate(self._run.manifest, before, updates, rng)
        self._run.adapters.write(round_number, adapter)
        return _Done(event=AggregationDone(round_number=round_number), adapter=adapter)

    def _device_update(self, arm: Arm, update: Update) -> DeviceUpdate:
        blob = self._store.read_update(update)
        if blob is None:
            msg = f"accepted update {self._store.update_path(update.round_number, update.device_id)} is damaged: resume"
            raise StoreError(msg, device_id=update.device_id, round_number=update.round_number)
        return DeviceUpdate(
            device_id=update.device_id,
            plan=self._run.assigner.plan(arm),
            rank=arm.rank,
            num_examples=update.num_examples,
            tensors=self._run.assigner.read_update(blob, arm),
        )

    def _evaluate(self, command: Evaluate) -> list[Event]:
        self._evaluation = None
        held_out, event = self._run.held_out, EvaluationDone(round_number=command.round_number)
        if held_out is None:
            return [event]
        adapter, adapters, config = self._adapter, self._run.adapters, self._run.config

        def job() -> _Done:
            record = held_out.evaluate(
                adapter,
                adapters.rank,
                adapters.lora_scaling,
                use_all=command.is_last,
                num_threads=config.num_threads,
            )
            return _Done(event=event, evaluation=record)

        self._background.start(job)
        return []

    def _finish_round(self, command: FinishRound) -> None:
        scheduler = self._run.scheduler
        outcomes = [self._outcome(command.round_number, participant) for participant in command.participants]
        for participant, outcome in zip(command.participants, outcomes, strict=True):
            was_observed = (
                participant.reason is FailureReason.INSUFFICIENT_MEMORY and participant.attempt < MAX_ATTEMPTS
            )
            if not was_observed:
                scheduler.observe(outcome)
        scheduler.observe_round(outcomes)
        self._ledger.finish_round(command.round_number, command.participants, self._evaluation, self.learnt())
        for digest in self._run.assigner.clear():
            self._mailroom.withdraw(digest)
