"""Schedulers: which arm each device plays in each round. To add one, write a file with a class and name it here."""

from __future__ import annotations

from broker_server.errors import ConfigError
from broker_server.methods.scheduler.base import ArmBox, ArmOutcome, Scheduler, SchedulerContext
from broker_server.methods.scheduler.by_class import ByClassScheduler
from broker_server.methods.scheduler.ducb import DiscountedUcbScheduler
from broker_server.methods.scheduler.fedara import FedAraScheduler
from broker_server.methods.scheduler.fedlps import FedLpsScheduler
from broker_server.methods.scheduler.fedspine import FedSpineScheduler
from broker_server.methods.scheduler.fixed import FixedScheduler
from broker_server.methods.scheduler.guarded import GuardedScheduler
from broker_server.methods.scheduler.oracle import OracleScheduler
from broker_server.methods.scheduler.random import RandomScheduler
from broker_server.methods.scheduler.thompson import ThompsonScheduler
from broker_server.methods.scheduler.uniform import UniformScheduler
from edge_runtime.wire.messages import Arm

__all__ = ["SCHEDULERS", "ArmBox", "ArmOutcome", "GuardedScheduler", "Scheduler", "SchedulerContext", "make_scheduler"]

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.name: scheduler
    for scheduler in (
        ByClassScheduler,
        DiscountedUcbScheduler,
        FedAraScheduler,
        FedLpsScheduler,
        FedSpineScheduler,
        FixedScheduler,
        OracleScheduler,
        RandomScheduler,
        ThompsonScheduler,
        UniformScheduler,
    )
}
"""Schedulers by name."""


def make_scheduler(name: str, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> Scheduler:
    """A new scheduler; ``context`` holds what some of them have to be told (see :class:`SchedulerContext`).

    Raises:
        ConfigError: there is none of that name, or it needs to be told what ``context`` does not say.
    """
    check_scheduler(name)
    return SCHEDULERS[name](arms, context)


def check_scheduler(name: str) -> None:
    """Refuse a name that no scheduler has.

    Raises:
        ConfigError: there is none.
    """
    if name not in SCHEDULERS:
        msg = f"scheduler {name!r} is not known, expected one of {', '.join(sorted(SCHEDULERS))}"
        raise ConfigError(msg)
