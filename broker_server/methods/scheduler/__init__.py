"""Schedulers: they choose an arm for each device in each round.

To add one here, write a file with a class and name it below; from a package outside: docs/extending.md.
"""

from __future__ import annotations

from typing import Final

from broker_server.errors import ConfigError
from broker_server.methods.scheduler.base import ArmOutcome, Scheduler, SchedulerContext
from broker_server.methods.scheduler.box import ArmBox
from broker_server.methods.scheduler.by_class import ByClassScheduler
from broker_server.methods.scheduler.costliest import CostliestScheduler
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
from edge_runtime.system.registry import Registry, subclass_of
from edge_runtime.wire.work import Arm

__all__ = [
    "SCHEDULERS",
    "ArmBox",
    "ArmOutcome",
    "GuardedScheduler",
    "Scheduler",
    "SchedulerContext",
    "make_scheduler",
    "scheduler_class",
]

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.name: scheduler
    for scheduler in (
        ByClassScheduler,
        CostliestScheduler,
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
"""FedSpine's own schedulers by name."""

_REGISTRY: Final = Registry(
    group="fedspine.schedulers",
    kind="scheduler",
    own=SCHEDULERS,
    fits=subclass_of(Scheduler),
    expected="a subclass of broker_server.methods.scheduler.Scheduler",
    error=ConfigError,
)


def make_scheduler(name: str, arms: tuple[Arm, ...], context: SchedulerContext | None = None) -> Scheduler:
    """Make a scheduler; ``context`` has facts that some schedulers need (see :class:`SchedulerContext`).

    Raises:
        ConfigError: see :func:`scheduler_class`; or ``context`` lacks a fact that the scheduler needs.
    """
    return scheduler_class(name)(arms, context)


def scheduler_class(name: str) -> type[Scheduler]:
    """The scheduler of a name: of FedSpine, of an installed package, or ``pkg.mod:Class``.

    Raises:
        ConfigError: there is no such scheduler, or it cannot be imported.
    """
    return _REGISTRY.find_or_import(name)
