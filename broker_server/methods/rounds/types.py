"""State, events and commands of the state machine of rounds; all immutable. Instants are monotonic seconds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from edge_runtime.wire.messages import AssignmentKey, FailureReason
from edge_runtime.wire.work import Arm


class Phase(enum.StrEnum):
    """The phase of a run, by the event that it waits for."""

    WAITING = "waiting"
    """Devices."""
    CHOOSING = "choosing"
    """The scheduler's arms."""
    COLLECTING = "collecting"
    """Updates."""
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    FAILED = "failed"


class Outcome(enum.StrEnum):
    """The end of an assignment."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"
    LOST = "lost"
    TIMED_OUT = "timed_out"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RoundLimits:
    """The settings of rounds; see :class:`broker_server.config.CoordinatorConfig`."""

    run_id: str
    num_rounds: int
    num_devices: int
    round_deadline_s: float
    registration_timeout_s: float
    rejoin_s: float
    asks_once: bool = False
    """Whether a device that answered is not asked again: its reply counts in all later rounds too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One device in the current round."""

    device_id: str
    attempt: int
    arm: Arm
    outcome: Outcome | None = None
    """None while the assignment is open."""
    detail: str = ""
    reason: FailureReason | None = None
    """Reason of the last failure of this attempt."""
    awaits_arm: bool = False
    """Whether the scheduler is asked for a cheaper arm, because the arm did not fit the device's memory."""
    lost_at: float | None = None
    """Time at which an offline device counts as lost; None while it is online."""
    silent_since: float | None = None
    """Time when the assignment was sent; None once the device has sent a message."""

    @property
    def is_open(self) -> bool:
        """Return whether the round still waits for the device."""
        return self.outcome is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Rounds in a row in which a device did not answer."""

    count: int
    """Weighted count, see :mod:`broker_server.methods.rounds.silence`."""
    until: int
    """The round in which the device is asked again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run, which determines the next transition."""

    limits: RoundLimits
    phase: Phase
    now: float
    round_number: int
    """The current round; while waiting, the next one. 0 = before training."""
    online: frozenset[str] = frozenset()
    participants: Mapping[str, Participant] = dataclasses.field(default_factory=dict)
    deadline_at: float = 0.0
    """End of waiting for devices, or of collecting updates."""
    num_awaited: int = 1
    """Devices to wait for before the round begins."""
    patient_until: float = 0.0
    """Time until which to wait for all of them; later one device is enough."""
    is_regathering: bool = False
    """Whether the coordinator was restarted, and no device whose process stayed has registered yet."""
    has_assembled: bool = False
    """Whether all devices had time to register: a round began in this process, or a device whose process stayed
    registered."""
    num_used_rounds: int = 0
    """Rounds of the whole run, earlier sessions included, whose updates made the next adapter."""
    num_empty_rounds: int = 0
    """Rounds in a row that ended without an update."""
    empty_reasons: tuple[str, ...] = ()
    """Latest reasons of the empty rounds."""
    farewells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Latest good-bye messages of devices that are offline."""
    misses: Mapping[str, Miss] = dataclasses.field(default_factory=dict)
    """Misses of devices that did not answer when they were last asked."""
    touched: tuple[str, ...] = ()
    """Participants that the last step may have changed."""
    called: frozenset[str] = frozenset()
    """Devices that were asked after the round had begun."""
    served: frozenset[str] = frozenset()
    """Devices with a stored reply for all later rounds; they are not asked again."""

    @property
    def num_standing(self) -> int:
        """Number of replies of earlier rounds that count in this round."""
        return len(self.served - self.participants.keys())

    @property
    def eligible(self) -> frozenset[str]:
        """Devices that may be asked in this round: available devices that are not left out for misses."""
        waiting = {name for name, miss in self.misses.items() if miss.until > self.round_number}
        return self.online - self.served - waiting


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The current time."""

    now: float
    is_deaf: bool = False
    """Whether the coordinator could receive no messages since the last tick: without a connection, or too busy."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRegistered:
    """A device registered (for the first time, or again)."""

    device_id: str
    has_stayed: bool = False
    """Whether an earlier process of the coordinator knew this process of the device."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHeard:
    """A device sent its first message since it was asked."""

    device_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOffline:
    """A device left, or fell silent."""

    device_id: str
    detail: str = "went offline"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ArmsChosen:
    """The scheduler's answer for some devices; None if no arm is left to try."""

    round_number: int
    arms: Mapping[str, Arm | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAnnounced:
    """A device announced its update, which can be pulled."""

    key: AssignmentKey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStored:
    """An update was checked and is on disk."""

    key: AssignmentKey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRejected:
    """An update was pulled and does not fit its assignment."""

    key: AssignmentKey
    detail: str
    reason: FailureReason | None = None
    """``DIVERGED`` where its values are beyond all bounds; None = another fault."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLate:
    """An update arrived, but by the emulated fleet's virtual clock the round's deadline has passed."""

    key: AssignmentKey
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFailed:
    """A device refused its assignment or gave it up."""

    key: AssignmentKey
    reason: FailureReason
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AggregationDone:
    """The global adapter of the round is on disk."""

    round_number: int
    discarded: str = ""
    """Reason why the updates were not used, and the adapter is that of the round before; empty = they were used."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDone:
    """The global adapter of the round was evaluated."""

    round_number: int


Event = (
    Tick
    | DeviceRegistered
    | DeviceHeard
    | DeviceOffline
    | ArmsChosen
    | UpdateAnnounced
    | UpdateStored
    | UpdateRejected
    | UpdateLate
    | DeviceFailed
    | AggregationDone
    | EvaluationDone
)


# ---- commands --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChooseArms:
    """Ask the scheduler for an arm for each of these devices."""

    round_number: int
    device_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChooseArmAgain:
    """Ask the scheduler for a cheaper arm for a device that refused its arm as infeasible."""

    round_number: int
    device_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SendAssignment:
    """Send (or send again) an assignment; ``deadline_s`` is the remaining time."""

    key: AssignmentKey
    arm: Arm
    deadline_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SendVerdict:
    """Send a device the verdict on its update."""

    key: AssignmentKey
    accepted: bool
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SendCancel:
    """Tell a device to stop."""

    key: AssignmentKey
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PullUpdate:
    """Pull the update that a device announced; asked again when it is announced again."""

    key: AssignmentKey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOldUpdate:
    """Look up whether an update of a closed round was accepted, and send the verdict."""

    key: AssignmentKey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the round's global adapter from these updates; without updates the last adapter stays."""

    round_number: int
    keys: tuple[AssignmentKey, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Evaluate the round's global adapter."""

    round_number: int
    is_last: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishRound:
    """Write the round's record."""

    round_number: int
    participants: tuple[Participant, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishRun:
    """All rounds are done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FailRun:
    """The run ends without a result."""

    detail: str
    reason: FailureReason | None = None
    """Reason why all devices of the last round failed, if they agree."""


Command = (
    ChooseArms
    | ChooseArmAgain
    | SendAssignment
    | SendVerdict
    | SendCancel
    | PullUpdate
    | AnswerOldUpdate
    | Aggregate
    | Evaluate
    | FinishRound
    | FinishRun
    | FailRun
)
