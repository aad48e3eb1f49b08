"""A coordinator in a few lines around the state machine: answers its commands, keeps them for the test to look at."""

from __future__ import annotations

from broker_server.methods.rounds import machine
from broker_server.methods.rounds.transitions import Step
from broker_server.methods.rounds.types import (
    Aggregate,
    AggregationDone,
    ArmsChosen,
    ChooseArmAgain,
    ChooseArms,
    Command,
    DeviceRegistered,
    Evaluate,
    EvaluationDone,
    Event,
    FinishRound,
    Outcome,
    Phase,
    PullUpdate,
    RoundLimits,
    Tick,
    UpdateStored,
)
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import AssignmentKey

LARGE, SMALL = LORA_AXES.parse("0.0:8,0.5:4")
LIMITS = RoundLimits(
    run_id="run", num_rounds=3, num_devices=2, round_deadline_s=100, registration_timeout_s=50, rejoin_s=5
)
A, B = "board-a", "board-b"


class Desk:
    """Plays the coordinator around the machine: answers what it can at once, and keeps all commands."""

    def __init__(self, limits: RoundLimits = LIMITS) -> None:
        self.commands: list[Command] = []
        self.stored: set[AssignmentKey] = set()
        self.cheaper: dict[str, bool] = {}
        self.answers_pulls = True
        self.take(machine.start(limits, 0.0))

    def take(self, step: Step) -> None:
        self.state, commands = step
        for command in commands:
            self.commands.append(command)
            answer = self.answer(command)
            if answer is not None:
                self.feed(answer)

    def feed(self, *events: Event) -> None:
        for event in events:
            if isinstance(event, UpdateStored):
                if machine.open_participant(self.state, event.key) is None:
                    continue  # as the translator does: what no longer counts is not stored
                self.stored.add(event.key)
            self.take(machine.advance(self.state, event))

    def answer(self, command: Command) -> Event | None:
        match command:
            case ChooseArms(round_number=number, device_ids=device_ids):
                return ArmsChosen(round_number=number, arms=dict.fromkeys(device_ids, LARGE))
            case ChooseArmAgain(round_number=number, device_id=device_id):
                arm = SMALL if self.cheaper.get(device_id, True) else None
                return ArmsChosen(round_number=number, arms={device_id: arm})
            case Aggregate(round_number=number):
                return AggregationDone(round_number=number)
            case Evaluate(round_number=number):
                return EvaluationDone(round_number=number)
            case PullUpdate(key=key) if self.answers_pulls:
                return UpdateStored(key=key)
        return None

    def sent(self, kind: type[Command]) -> list[Command]:
        return [command for command in self.commands if isinstance(command, kind)]

    def tick(self, seconds: float) -> None:
        self.feed(Tick(now=self.state.now + seconds))

    def outcomes(self) -> dict[str, Outcome | None]:
        finished = [c for c in self.commands if isinstance(c, FinishRound)][-1]
        return {p.device_id: p.outcome for p in finished.participants}


def key(device_id: str, round_number: int = 1, attempt: int = 1) -> AssignmentKey:
    return AssignmentKey(run_id="run", round_number=round_number, device_id=device_id, attempt=attempt)


def begun() -> Desk:
    """Round 1 with two devices that have their assignments."""
    desk = Desk()
    desk.feed(DeviceRegistered(device_id=A), DeviceRegistered(device_id=B))
    assert desk.state.phase is Phase.COLLECTING
    desk.commands.clear()
    return desk
