"""The ledger of a run: it writes to the store and the event log, and measures the time of rounds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection
from typing import Final

from broker_server.methods.rounds.types import Outcome, Participant, Phase, RunState
from broker_server.serving.coordinator.sightings import Sightings
from broker_server.serving.storage.events import (
    AnyEvent,
    DeviceSeen,
    EventLog,
    RoundFinished,
    RoundStarted,
    RunFinished,
    Started,
    UpdateAccepted,
    UpdatesDiscarded,
)
from broker_server.serving.storage.records import DeviceRecord, EvaluationRecord, FileDigests, KeptRecord, RoundRecord
from broker_server.serving.storage.rows import SchedulerState
from broker_server.serving.storage.store import Store
from edge_runtime.bounds import limits
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import Axes
from edge_runtime.wire.messages import AssignmentKey, DeviceState, Register, Status, Update

logger = logging.getLogger(__name__)

TRIM_EVERY: Final = 256
"""Registrations between two checks of the number of devices on disk."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Quality of a global adapter; None if it was not measured."""

    full: EvaluationRecord | None = None
    sparse: EvaluationRecord | None = None
    """Quality of the sub-model at the run's sparsity."""
    kept: KeptRecord | None = None
    """Quality of an earlier round, if that round is kept in place of the last."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The result of the updates of a round."""

    files: FileDigests
    discarded: str = ""
    """Reason why they were not used; empty = they were."""
    is_unchanged: bool = False
    """Whether the updates did not change the adapter by a single bit."""
    num_standing: int = 0
    """Number of updates of earlier rounds that count too."""


class Ledger:
    """Writes the state for a restart to the store, and the events for people to the event log."""

    def __init__(
        self,
        store: Store,
        events: EventLog,
        *,
        run_id: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        max_devices: int,
        axes: Axes,
        asks_once: bool = False,
    ) -> None:
        self._store = store
        self._axes = axes
        self._run_id = run_id
        self._events = events
        self._sightings = Sightings(events, clock, max_devices)
        self._max_devices = max_devices
        self._num_registered = 0
        self._clock = clock
        self._wall_clock = wall_clock
        records = store.load_round_records()
        self._elapsed_s = records[-1].elapsed_s if records else 0.0
        self._elapsed_emulated_s = (records[-1].elapsed_emulated_s or 0.0) if records else 0.0
        self._sent_at: dict[AssignmentKey, float] = {}
        self._completion_s: dict[AssignmentKey, float] = {}
        self._earlier_s = 0.0
        self._began_at = clock()
        self._accepted: dict[str, Update] = {}
        self.last_finished: int | None = records[-1].round_number if records else None
        """The last round with a record; None before the first evaluation."""
        self._evaluations = {r.round_number: r.evaluation for r in records if r.evaluation is not None}
        self._standing: dict[str, Update] | None = None
        """Updates that count in all later rounds too, by device; None = updates count only in their own round."""
        if asks_once:
            self._standing = {update.key.device_id: update for update in store.load_updates()}
        self.num_used_rounds = sum(record.was_used for record in records)
        """Finished rounds whose updates made the next adapter."""

    def hold(self) -> None:
        """Gather all writes from now on; each :meth:`settle` writes them."""
        self._store.hold()
        self._events.hold()

    def settle(self) -> None:
        """Make the gathered writes durable, then write their events.

        Raises:
            DiskFullError: there is no space.
            StoreError: the database cannot be used.
        """
        self._store.settle()
        self._events.settle()

    def resume_round(self) -> dict[str, Participant] | None:
        """Participants of the open round, None if there is none."""
        opened = self._store.load_open_round()
        if opened is None:
            return None
        self._earlier_s = opened.active_s
        self._accepted = {update.key.device_id: update for update in self._store.load_updates(opened.round_number)}
        self._resume_times(opened.round_number)
        kept = sum(p.outcome is Outcome.ACCEPTED for p in opened.participants.values())
        logger.info("round %d had begun; %d of its updates are kept", opened.round_number, kept)
        return opened.participants

    def _resume_times(self, round_number: int) -> None:
        """Read the times at which assignments of this round were sent, and the durations of finished ones.

        Between processes only the wall clock is known. Impossible times, from a clock that was set, are ignored.
        """
        now, wall_now = self._clock(), self._wall_clock()
        accepted_at = self._store.load_accept_times(self._run_id, round_number)
        for key, work in self._store.load_works(self._run_id, round_number).items():
            if work.sent_at is None:
                continue
            if key in accepted_at:
                taken_s = accepted_at[key] - work.sent_at
                if 0 < taken_s <= limits.LONGEST_S:
                    self._completion_s[key] = taken_s
            elif 0 <= wall_now - work.sent_at <= limits.LONGEST_S:
                self._sent_at[key] = now - (wall_now - work.sent_at)

    def save(self, before: RunState, after: RunState, scheduler_state: Callable[[], SchedulerState | None]) -> None:
        """Write the changes of a step, before anything is sent that depends on them.

        Args:
            before: the state before the step.
            after: the state after it.
            scheduler_state: returns the scheduler's state if it changed since it was last written, else None.
        """
        if after.participants is before.participants or after.phase is Phase.WAITING:
            return
        changed = _changed(before, after)
        round_number = after.round_number
        if before.phase is Phase.CHOOSING:
            self._began_at, self._earlier_s, self._accepted = self._clock(), 0.0, {}
            self._store.begin_round(round_number, changed, scheduler_state(), self._wall_clock())
            arms = {participant.device_id: self._axes.format((participant.arm,)) for participant in changed}
            self._log(RoundStarted(at=self._wall_clock(), round_number=round_number, arms=arms))
        elif changed:
            self._store.save_participants(round_number, changed, scheduler_state(), self._active_s)
        for participant in changed:
            if participant.outcome is Outcome.ACCEPTED:
                self._log(
                    UpdateAccepted(at=self._wall_clock(), round_number=round_number, device_id=participant.device_id)
                )

    def assigned(self, key: AssignmentKey) -> float:
        """Record that an assignment is sent; the first time counts. Return this time, Unix seconds."""
        now = self._clock()
        return self._wall_clock() - now + self._sent_at.setdefault(key, now)

    def accept_update(self, update: Update, blob: bytes) -> None:
        """Keep an update, durably once settled; see :meth:`broker_server.serving.storage.store.Store.accept_update`."""
        self._store.accept_update(update, blob, self._wall_clock())
        key = update.key
        self._accepted[key.device_id] = update
        if self._standing is not None:
            self._standing[key.device_id] = update
        if key in self._sent_at:
            self._completion_s[key] = self._clock() - self._sent_at[key]

    @property
    def served(self) -> frozenset[str]:
        """Devices whose updates count in all later rounds too."""
        return frozenset(self._standing or ())

    def standing_beside(self, keys: Collection[AssignmentKey]) -> list[Update]:
        """Standing updates of earlier rounds, without those of ``keys``, by device."""
        devices = {key.device_id for key in keys}
        return [update for name, update in sorted((self._standing or {}).items()) if name not in devices]

    def updates_discarded(self, round_number: int, detail: str) -> None:
        """Record that the updates of a round could not be used."""
        logger.warning("round %d: its updates are not used, the last adapter stays: %s", round_number, detail)
        self._log(UpdatesDiscarded(at=self._wall_clock(), round_number=round_number, detail=detail))

    def late(self, key: AssignmentKey, emulated_s: float) -> None:
        """Record that an update came after the deadline of the virtual clock."""
        self._completion_s[key] = emulated_s

    def completion_s(self, key: AssignmentKey) -> float | None:
        """Wall time from an assignment to its stored update (emulated, if it was late); None = not known."""
        return self._completion_s.get(key)

    def accepted(self, participant: Participant) -> Update | None:
        """The accepted update of a participant."""
        return self._accepted.get(participant.device_id) if participant.outcome is Outcome.ACCEPTED else None

    def finish_round(
        self,
        round_number: int,
        devices: tuple[DeviceRecord, ...],
        quality: Quality,
        scheduler_state: SchedulerState | None,
        made: Made,
        *,
        emulated_s: float | None = None,
        is_deploy: bool = False,
    ) -> None:
        """Write the record of a round.

        Args:
            round_number: 0 = before training.
            devices: outcomes of its assignments.
            quality: of its adapter.
            scheduler_state: of the scheduler; None: it is on disk.
            made: result of its updates.
            emulated_s: length of the round on the virtual clock; None = nothing is emulated.
            is_deploy: whether all trained the plan that is deployed.
        """
        seconds = self._active_s
        self._elapsed_s += seconds if round_number > 0 else 0.0
        self._elapsed_emulated_s += emulated_s or 0.0
        record = RoundRecord(
            round_number=round_number,
            seconds=seconds,
            elapsed_s=self._elapsed_s,
            evaluation=quality.full,
            devices=devices,
            sparse=quality.sparse,
            files=made.files,
            is_deploy=is_deploy,
            emulated_s=emulated_s,
            elapsed_emulated_s=None if emulated_s is None else self._elapsed_emulated_s,
            kept=quality.kept,
            discarded=made.discarded,
            is_unchanged=made.is_unchanged,
            num_standing=made.num_standing,
        )
        self._store.finish_round(record, scheduler_state, self._wall_clock())
        self._log(RoundFinished(at=self._wall_clock(), record=record))
        self.last_finished = round_number
        self.num_used_rounds += record.was_used
        if quality.full is not None:
            self._evaluations[round_number] = quality.full
        self._began_at, self._earlier_s, self._accepted = self._clock(), 0.0, {}
        self._sent_at.clear()
        self._completion_s.clear()
        full = quality.full
        text = "not evaluated" if full is None else f"loss {full.loss:.4f}, {full.accuracy:.4f} right"
        logger.info("round %d finished after %.1f s: %s", round_number, seconds, text)

    def best_round(self, round_number: int, evaluation: EvaluationRecord, task: Task) -> int:
        """The best trained round so far, by accuracy (text-classification) or loss (causal-lm), on the same examples.

        Args:
            round_number: the round that has just been evaluated.
            evaluation: its quality.
            task: of the run.

        Returns:
            The number of the best round, the latest of equals; ``round_number`` if no other round was measured.
        """
        known = {**self._evaluations, round_number: evaluation}

        def rank(number: int) -> tuple[float, float, int]:
            measured = known[number]
            return (-measured.accuracy if task == "text-classification" else measured.loss, measured.loss, -number)

        return min((number for number in known if number > 0), key=rank, default=round_number)

    def run_started(self, run_id: str, num_rounds: int) -> None:
        """Record that a coordinator process started."""
        next_round = 0 if self.last_finished is None else self.last_finished + 1
        what = f"round {next_round} of {num_rounds} is next" if next_round <= num_rounds else "all rounds are done"
        logger.info("run %s: %s", run_id, what)
        self._log(Started(at=self._wall_clock(), run_id=run_id, next_round=next_round, num_rounds=num_rounds))

    def run_finished(self, run_id: str) -> None:
        """Record that all rounds are done."""
        logger.info("run %s finished: %d of %d rounds used updates", run_id, self.num_used_rounds, self.last_finished)
        self._log(RunFinished(at=self._wall_clock(), run_id=run_id))

    def load_sessions(self) -> dict[str, str]:
        """Sessions of all registered devices, by device; earlier processes of the coordinator included."""
        return self._store.load_sessions()

    def device_registered(self, message: Register) -> None:
        """Write a device's registration."""
        self._store.save_device(message, self._wall_clock())
        if self._num_registered % TRIM_EVERY == 0:
            self._store.trim_devices(self._max_devices)
        self._num_registered += 1
        self.device_seen(message.device_id, DeviceState.IDLE, "registered")

    def status_seen(self, status: Status) -> None:
        """Record the progress of a device's work."""
        moved = (status.round_number, status.step, status.num_steps)
        self.device_seen(status.device_id, status.state, status.detail, *moved)

    def device_seen(
        self, device_id: str, state: DeviceState, detail: str, round_number: int = 0, step: int = 0, num_steps: int = 0
    ) -> None:
        """Record that a device came or went, or the progress of its work."""
        self._sightings.see(
            DeviceSeen(
                at=self._wall_clock(),
                device_id=device_id,
                state=state.value,
                round_number=round_number,
                step=step,
                num_steps=num_steps,
                detail=detail,
            )
        )

    @property
    def _active_s(self) -> float:
        return self._earlier_s + self._clock() - self._began_at

    def _log(self, event: AnyEvent) -> None:
        self._events.write(event)


def _changed(before: RunState, after: RunState) -> list[Participant]:
    """Participants whose stored part was changed by a step."""
    pairs = [(before.participants.get(name), after.participants[name]) for name in dict.fromkeys(after.touched)]
    return [one for was, one in pairs if _lasting(one) != _lasting(was)]


def _lasting(participant: Participant | None) -> Participant | None:
    """Return the part of a participant that is stored: everything except the times of absence and silence."""
    return None if participant is None else dataclasses.replace(participant, lost_at=None, silent_since=None)
