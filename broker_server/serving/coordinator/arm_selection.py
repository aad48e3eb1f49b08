"""The link between rounds and scheduler: asks it for each device's arm, and reports the outcomes to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from broker_server.emulation.clock import round_s
from broker_server.methods.rounds.machine import MAX_ATTEMPTS
from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.serving.coordinator.combining import GlobalState
from broker_server.serving.coordinator.ledger import Ledger
from broker_server.serving.coordinator.outcomes import PlayedArm, arm_outcome, device_record
from broker_server.serving.coordinator.run_context import ARMS, RunContext
from broker_server.serving.storage.records import DeviceRecord
from edge_runtime.wire.messages import AssignmentKey, FailureReason
from edge_runtime.wire.work import Arm, name_of


class ArmSelection:
    """Asks for arms, and reports their outcomes.

    In deploy rounds the scheduler chooses only ranks, and learns only from refusals, because it does not choose the
    ratio. A device that refuses an arm as infeasible gets no ramp any more (ours): a slowly growing ratio would keep it
    out of the run, so it uses the full ratio of its arms from then on.
    """

    def __init__(self, run: RunContext, ledger: Ledger, refusers: Iterable[str]) -> None:
        """Start from the ledger.

        Args:
            run: the parts of the run.
            ledger: ledger of the run.
            refusers: devices that refused an arm as infeasible, in earlier sessions too.
        """
        self._run = run
        self._ledger = ledger
        self._refusers = set(refusers)
        self.has_news = False
        """Whether the scheduler's state changed since it was last written; only then is it written again."""

    def choose(self, round_number: int, device_ids: Sequence[str]) -> dict[str, Arm | None]:
        """Choose arms for the available devices; in an emulated fleet availability is random."""
        self.has_news = True
        clock, scheduler = self._run.clock, self._run.scheduler
        if clock is not None:
            members = [device_id for device_id in device_ids if device_id in clock.fleet.members]
            device_ids = clock.available(round_number, members) if members else ()
        arms = scheduler.choose(round_number, device_ids, self._run.generator(ARMS, round_number))
        return {device_id: self._deployed(round_number, arm) for device_id, arm in arms.items()}

    def choose_again(self, round_number: int, participant: Participant) -> Arm | None:
        """A cheaper arm for a device that refused its arm; None = there is none."""
        self.has_news = True
        self._refusers.add(participant.device_id)
        self._run.scheduler.observe(
            arm_outcome(round_number, participant, self._played_by(round_number, participant, None), None)
        )
        rng = self._run.generator(ARMS, round_number)
        arm = self._run.scheduler.choose_again(round_number, participant.device_id, rng)
        if not self._run.is_deploy(round_number):
            return arm
        largest = participant.arm.rank // 2
        rank = largest if arm is None else min(arm.rank, largest)
        cheaper = msgspec.structs.replace(arm or participant.arm, rank=rank) if rank else None
        return None if cheaper is None else self._deployed(round_number, cheaper)

    def plays_at_once(self, device_id: str) -> bool:
        """Return whether a device plays its arms without a ramp."""
        return device_id in self._refusers

    def finish(
        self, round_number: int, participants: Sequence[Participant], made: GlobalState
    ) -> tuple[tuple[DeviceRecord, ...], float | None]:
        """Report a round's outcomes to the scheduler.

        Args:
            round_number: 0 = before training, without participants.
            participants: of the round.
            made: result of its updates.

        Returns:
            The devices' records, and the length of the round on the virtual clock (None: nothing is emulated).
        """
        records, outcomes = [], []
        for participant in participants:
            update = self._ledger.accepted(participant)
            played = self._played_by(round_number, participant, made)
            records.append(device_record(participant, played, update))
            outcomes.append(arm_outcome(round_number, participant, played, update))
        if round_number > 0:
            for participant, outcome in zip(participants, outcomes, strict=True):
                is_infeasible = participant.reason is FailureReason.ARM_INFEASIBLE
                was_observed = is_infeasible and participant.attempt < MAX_ATTEMPTS
                if not was_observed and (is_infeasible or not self._run.is_deploy(round_number)):
                    self._run.scheduler.observe(outcome)
                    self.has_news = True
            if not self._run.is_deploy(round_number):
                self.has_news = True
                self._run.scheduler.observe_round(outcomes)
        if self._run.clock is None:
            return tuple(records), None
        return tuple(records), round_s({r.device_id: r.emulated_s for r in records}, self._run.deadline_s)

    def _deployed(self, round_number: int, arm: Arm) -> Arm:
        sparsity = self._run.config.sparsity
        if sparsity is None or not self._run.is_deploy(round_number):
            return arm
        return msgspec.structs.replace(arm, pruning_ratio=sparsity)

    def _played_by(self, round_number: int, participant: Participant, made: GlobalState | None) -> PlayedArm:
        run = self._run
        key = AssignmentKey(
            run_id=run.config.run_id,
            round_number=round_number,
            device_id=participant.device_id,
            attempt=participant.attempt,
        )
        work, update = run.assigner.work(key), self._ledger.accepted(participant)
        if work is None:  # it went offline before an assignment was sent
            arm, sparsity = participant.arm, run.plans.sparsity(participant.arm.pruning_ratio)
        elif participant.reason is FailureReason.ARM_INFEASIBLE and update is None:
            arm, sparsity = work.start_arm, work.start_sparsity
        else:
            arm, sparsity = work.played_arm, work.sparsity
        completion_s, emulated_s = self._ledger.completion_s(key), None
        if update is not None and run.clock is not None:
            num_bytes = 0 if update.blob is None else update.blob.size_bytes
            completion_s = emulated_s = run.emulated_s(key, num_bytes)
        elif participant.outcome is Outcome.TIMED_OUT and math.isfinite(run.deadline_s):
            completion_s, emulated_s = completion_s or run.deadline_s, run.deadline_s
        return PlayedArm(
            arm=arm,
            sparsity=sparsity,
            num_steps=run.config.training.num_local_steps if work is None else work.num_steps,
            completion_s=completion_s,
            device_class=None if run.clock is None else run.clock.fleet.members.get(participant.device_id),
            emulated_s=emulated_s,
            adapter_delta=None if made is None else made.deltas.get(participant.device_id),
            work="" if work is None else name_of(work.work),
            not_finite=None if made is None else made.not_finite.get(participant.device_id),
        )
