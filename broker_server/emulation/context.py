"""The context of schedulers that may know the fleet: device classes, true times, true limits."""

from __future__ import annotations

import dataclasses

from broker_server.config import CoordinatorConfig
from broker_server.emulation.clock import VirtualClock
from broker_server.emulation.fleet import Fleet
from broker_server.methods.scheduler import SchedulerContext
from broker_server.methods.training import TrainingConfig
from edge_runtime.engine.memory import estimate_training_bytes
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan, uniform_num_kept
from edge_runtime.wire.arms import Axes
from edge_runtime.wire.work import Arm

_BYTES_OF = {"float32": 4, "float16": 2}


def fleet_context(fleet: Fleet | None, num_rounds: int, axes: Axes) -> SchedulerContext:
    """Return the context that is known without the model: enough to check a scheduler, but without true times."""
    if fleet is None:
        return SchedulerContext(axes=axes, num_rounds=num_rounds)
    return SchedulerContext(
        axes=axes,
        num_rounds=num_rounds,
        device_classes=fleet.members,
        class_arms={one.name: one.arm_on(axes) for one in fleet.classes if one.arm},
        class_capability={one.name: 1.0 / one.compute_factor for one in fleet.classes},
        completion_s=lambda device_id, _arm, round_number: fleet.class_of(device_id).compute_factor_at(round_number),
    )


def scheduler_context(config: CoordinatorConfig, manifest: Manifest, clock: VirtualClock | None) -> SchedulerContext:
    """Everything; without an emulated fleet only the number of rounds."""
    if clock is None:
        return fleet_context(None, config.training.num_rounds, config.axes)
    training, fleet = config.training, clock.fleet
    known = fleet_context(fleet, training.num_rounds, config.axes)
    plans: dict[float, Plan] = {}

    def plan_of(arm: Arm) -> Plan:
        if arm.pruning_ratio not in plans:
            kept = {
                (spec.layer, spec.group): range(uniform_num_kept(spec, arm.pruning_ratio)) for spec in manifest.groups
            }
            plans[arm.pruning_ratio] = Plan.from_kept(manifest, kept)
        return plans[arm.pruning_ratio]

    def completion_s(device_id: str, arm: Arm, round_number: int) -> float:
        num_bytes = _BYTES_OF[config.wire_dtype] * AdapterLayout.of(manifest, plan_of(arm), arm.rank).num_elements
        return clock.expected_s(device_id, arm, round_number, training.num_local_steps, num_bytes)

    def is_feasible(device_id: str, arm: Arm) -> bool:
        memory_mb = fleet.class_of(device_id).memory_mb
        fits = not memory_mb or _needed_bytes(manifest, plan_of(arm), arm, training) <= memory_mb * 2**20
        return fits and completion_s(device_id, arm, 1) <= clock.deadline_s

    return dataclasses.replace(known, completion_s=completion_s, is_feasible=is_feasible)


def _needed_bytes(manifest: Manifest, plan: Plan, arm: Arm, training: TrainingConfig) -> int:
    return estimate_training_bytes(manifest, plan, arm.rank, training.batch_size, training.max_length)
