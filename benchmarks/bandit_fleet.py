"""A simulated fleet for real schedulers: times and gains of devices are formulas, all other code is FedSpine's.

The formulas have the shape of measurements on the small encoder (step time and bytes fall linearly with the ratio).
Only the scheduler ``oracle`` knows them:

    step(p, r)   = 0.06 + 0.94 (1 - p) (1 + 0.004 r)           relative to the unpruned step at rank 0
    T_i(p, r)    = factor_i(t) * step * STEP_S * NUM_STEPS + bytes / uplink_i + bytes / downlink_i
    bytes(p, r)  = (1 - 0.8 p) r * BYTES_PER_RANK
    memory(p, r) = 0.3 + 0.7 (1 - p) (1 + 0.01 r)              relative, against the class's cap
    dLoss        = 0.3 / (1 + 0.05 t) * quality * device * noise
    quality      = (1 - 0.35 p^1.5) (0.85 + 0.15 log_R r)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_server.methods.rounds.machine import MAX_ATTEMPTS
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import ArmOutcome, Scheduler, SchedulerContext, make_scheduler
from broker_server.methods.scheduler.reward import ADAPTER_SHARE, LOSS_SHARE, Credit, credit_round
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.measures import LocalEvaluation
from edge_runtime.wire.messages import FailureReason
from edge_runtime.wire.work import Arm

Floats = npt.NDArray[np.float64]

ARMS = LORA_AXES.parse(",".join(f"{ratio}:{rank}" for ratio in (0.0, 0.25, 0.5, 0.75, 0.875) for rank in (2, 4, 8, 16)))
"""Grid of the schedulers that take arms from a list; its box is the space of the others."""
MAX_RANK = 16
STEP_S, NUM_STEPS, BYTES_PER_RANK = 0.1, 10, 160_000
TIME_NOISE, LOSS_NOISE, DEVICE_NOISE, DELTA_NOISE = 0.05, 0.3, 0.2, 0.1
"""Standard deviations of logarithms."""
NO_CAP: Final = 2.0
"""Memory in which every arm fits."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedClass:
    """Devices of one kind."""

    name: str
    count: int
    factor: float
    """Step time over the reference machine's."""
    memory: float
    """Cap, in the unit of :func:`memory`."""
    uplink_mbit_s: float
    downlink_mbit_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A class that slows down."""

    name: str
    from_round: int
    factor: float = 3.0


def fleet(scale: float = 1.0) -> tuple[SimulatedClass, ...]:
    """Jetson TX2 : NX : AGX as 30 : 40 : 10, times ``scale``; caps bar slow devices from little pruned arms."""
    rows = (
        ("slow", 30, 8.0, 0.62, 20.0, 40.0),
        ("middle", 40, 2.0, 0.92, 50.0, 100.0),
        ("fast", 10, 1.0, 2.0, 100.0, 200.0),
    )
    return tuple(
        SimulatedClass(
            name=name, count=max(1, round(n * scale)), factor=factor, memory=cap, uplink_mbit_s=up, downlink_mbit_s=down
        )
        for name, n, factor, cap, up, down in rows
    )


def slow_links(scale: float = 1.0) -> tuple[SimulatedClass, ...]:
    """The same devices with links a tenth as fast and no memory caps."""
    return tuple(
        dataclasses.replace(
            one, memory=NO_CAP, uplink_mbit_s=0.1 * one.uplink_mbit_s, downlink_mbit_s=0.1 * one.downlink_mbit_s
        )
        for one in fleet(scale)
    )


def even(scale: float = 1.0) -> tuple[SimulatedClass, ...]:
    """The same links, but nearly even devices, and no memory caps."""
    factors = {"slow": 2.5, "middle": 1.6, "fast": 1.0}
    return tuple(dataclasses.replace(one, memory=NO_CAP, factor=factors[one.name]) for one in fleet(scale))


FLEETS: Final[Mapping[str, Callable[[float], tuple[SimulatedClass, ...]]]] = {
    "jetson": fleet,
    "slow-links": slow_links,
    "even": even,
}
"""By name, as the benchmark's ``--fleet``."""


def memory(arm: Arm) -> float:
    """Memory of an arm, relative to the unpruned model at rank 0."""
    return 0.3 + 0.7 * (1 - arm.pruning_ratio) * (1 + 0.01 * arm.rank)


def quality(arm: Arm) -> float:
    """Expected relative improvement of the local loss over the unpruned arm's of the largest rank, (0, 1]."""
    rank = 0.85 + 0.15 * math.log(arm.rank) / math.log(MAX_RANK)
    return float((1 - 0.35 * arm.pruning_ratio**1.5) * rank)


def delta(arm: Arm) -> float:
    """Expected norm of the adapter's change over the largest arm's, (0, 1]."""
    return float(math.sqrt(1 - arm.pruning_ratio) * (arm.rank / MAX_RANK) ** 0.2)


def gain(arm: Arm) -> float:
    """Expected numerator of the reward over kappa, without pruning progress, which is paid once.

    The maxima that the reward divides by are those of noisy values: 80 devices' expected maximum is taken for all.
    """
    most = 2.43  # expected maximum of 80 standard normal values
    loss = LOSS_SHARE * math.exp(-most * math.hypot(LOSS_NOISE, DEVICE_NOISE)) * (1 - arm.pruning_ratio) * quality(arm)
    return loss + ADAPTER_SHARE * math.exp(-most * DELTA_NOISE) * delta(arm)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One simulated round, as it truly was: no noise in it."""

    round_s: float
    speed: float
    """Learning speed J: mean gain (0 for devices without an update) over round time."""
    num_plays: int
    num_infeasible: int
    idle_ratio: float
    """Mean share of the round that devices wait for the slowest."""
    rewards: float
    """Mean observed reward."""
    arms: dict[str, tuple[float, float]]
    """Mean (ratio, rank) of each class."""


class SimulatedFleet:
    """Devices, and rounds of a scheduler on them. All noise is drawn from the seed, the same for every scheduler."""

    def __init__(
        self, classes: Sequence[SimulatedClass], seed: int, drift: Drift | None = None, deadline_s: float = 20.0
    ) -> None:
        self.classes = {f"{c.name}-{k:02d}": c for c in classes for k in range(c.count)}
        self._seed, self._drift, self._deadline_s = seed, drift, deadline_s
        draws = np.random.default_rng((seed, 0)).standard_normal(len(self.classes))
        self._talent = {i: math.exp(DEVICE_NOISE * z) for i, z in zip(self.classes, draws, strict=True)}
        self._deepest: dict[str, float] = {}

    def completion_s(self, device_id: str, arm: Arm, round_number: int) -> float:
        """Expected completion time."""
        kind, drift = self.classes[device_id], self._drift
        factor = kind.factor
        if drift is not None and drift.name == kind.name and round_number >= drift.from_round:
            factor *= drift.factor
        step = 0.06 + 0.94 * (1 - arm.pruning_ratio) * (1 + 0.004 * arm.rank)
        mbit = 8e-6 * BYTES_PER_RANK * arm.rank * (1 - 0.8 * arm.pruning_ratio)
        return factor * step * STEP_S * NUM_STEPS + mbit / kind.uplink_mbit_s + mbit / kind.downlink_mbit_s

    def fits(self, device_id: str, arm: Arm) -> bool:
        """Return whether an arm fits the device's memory."""
        return memory(arm) <= self.classes[device_id].memory

    def context(self, num_rounds: int) -> SchedulerContext:
        """All that is to be known of the fleet."""
        kinds = {c.name: c for c in self.classes.values()}
        return SchedulerContext(
            num_rounds=num_rounds,
            device_classes={device_id: c.name for device_id, c in self.classes.items()},
            class_capability={name: 1 / c.factor for name, c in kinds.items()},
            completion_s=self.completion_s,
            is_feasible=self.fits,
            gain=gain,
        )

    def play(self, scheduler: Scheduler, round_number: int) -> Played:
        """One round: choose, choose again where memory did not suffice, observe."""
        rng = np.random.default_rng((self._seed, 1, round_number))
        noise = np.random.default_rng((self._seed, 2, round_number)).standard_normal((len(self.classes), 3))
        chosen = scheduler.choose(round_number, list(self.classes), rng)
        outcomes, infeasible, plays = [], 0, 0
        for (device_id, arm), draws in zip(sorted(chosen.items()), noise, strict=True):
            tried: Arm | None = arm
            for attempt in range(1, MAX_ATTEMPTS + 1):
                if tried is None:
                    break
                plays += 1
                outcome = self._outcome(device_id, tried, round_number, draws)
                scheduler.observe(outcome)
                infeasible += outcome.outcome is not Outcome.ACCEPTED
                if outcome.reason is not FailureReason.ARM_INFEASIBLE or attempt == MAX_ATTEMPTS:
                    break
                tried = scheduler.choose_again(round_number, device_id, rng)
            outcomes.append(outcome)
        scheduler.observe_round(outcomes)
        return self._played(round_number, outcomes, plays, infeasible)

    def _outcome(self, device_id: str, arm: Arm, round_number: int, draws: Floats) -> ArmOutcome:
        sparsity = arm.pruning_ratio
        if not self.fits(device_id, arm):
            return ArmOutcome(
                round_number=round_number, device_id=device_id, arm=arm, sparsity=sparsity, outcome=Outcome.FAILED,
                reason=FailureReason.ARM_INFEASIBLE,
            )  # fmt: skip
        seconds = self.completion_s(device_id, arm, round_number) * math.exp(TIME_NOISE * draws[0])
        is_late = seconds > self._deadline_s
        fall = 0.3 / (1 + 0.05 * round_number)
        fall *= quality(arm) * self._talent[device_id] * math.exp(LOSS_NOISE * draws[1] - LOSS_NOISE**2 / 2)
        local = LocalEvaluation(
            num_targets=100, loss_before=1.0, loss_after=1 - min(fall, 1.0), accuracy_before=0.5, accuracy_after=0.5
        )
        return ArmOutcome(
            round_number=round_number,
            device_id=device_id,
            arm=arm,
            sparsity=sparsity,
            outcome=Outcome.TIMED_OUT if is_late else Outcome.ACCEPTED,
            completion_s=seconds,
            evaluation=None if is_late else local,
            adapter_delta=None if is_late else delta(arm) * math.exp(DELTA_NOISE * draws[2]),
            num_local_steps=NUM_STEPS,
        )

    def _played(self, round_number: int, outcomes: list[ArmOutcome], plays: int, infeasible: int) -> Played:
        earned: dict[str, Credit] = credit_round(outcomes, self._deepest)
        for o in outcomes:
            if o.device_id in earned:
                self._deepest[o.device_id] = max(o.sparsity, self._deepest.get(o.device_id, 0.0))
        accepted = [o for o in outcomes if o.outcome is Outcome.ACCEPTED]
        late = any(o.outcome is Outcome.TIMED_OUT for o in outcomes)
        times = [self.completion_s(o.device_id, o.arm, round_number) for o in accepted]
        round_s = max([*times, self._deadline_s if late else 0.0]) or self._deadline_s
        arms = {}
        for name in dict.fromkeys(c.name for c in self.classes.values()):
            mine = [o.arm for o in outcomes if self.classes[o.device_id].name == name]
            arms[name] = (
                float(np.mean([arm.pruning_ratio for arm in mine])), float(np.mean([arm.rank for arm in mine])),
            )  # fmt: skip
        return Played(
            round_s=round_s,
            speed=sum(gain(o.arm) for o in accepted) / len(self.classes) / round_s,
            num_plays=plays,
            num_infeasible=infeasible,
            idle_ratio=1 - float(np.mean(times)) / round_s if times else 1.0,
            rewards=sum(credit.reward for credit in earned.values()) / len(self.classes),
            arms=arms,
        )


def play(
    name: str, classes: Sequence[SimulatedClass], num_rounds: int, seed: int, drift: Drift | None = None
) -> list[Played]:
    """A whole run of a scheduler, by name."""
    simulated = SimulatedFleet(classes, seed, drift)
    scheduler = make_scheduler(name, ARMS, simulated.context(num_rounds))
    return [simulated.play(scheduler, round_number) for round_number in range(1, num_rounds + 1)]
