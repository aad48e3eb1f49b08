"""The assignment that a device is on."""

from __future__ import annotations

import dataclasses

from edge_runtime.wire.messages import Assignment, AssignmentKey
from edge_runtime.wire.work import LoraWork, ProbeWork, ZeroOrderWork


@dataclasses.dataclass(slots=True)
class Work:
    """One assignment, from when it came until it is done, given up or dropped. Instants are monotonic seconds."""

    assignment: Assignment
    received_at: float
    deadline_at: float
    payload: tuple[bytes, float] | None = None
    """Safetensors bytes to start from, and how long they took to arrive, seconds; None until they are here, and once
    the work has begun."""
    asked_at: float = 0.0
    """When it was asked for what the work starts from."""
    is_to_rebuild: bool = False
    """Whether the payload is to be made of what is here, before it is pulled."""
    is_running: bool = False

    @property
    def key(self) -> AssignmentKey:
        """What makes it effectively once."""
        return self.assignment.key


def what(work: LoraWork | ProbeWork | ZeroOrderWork) -> str:
    """A few words on what is asked."""
    match work:
        case LoraWork():
            return f"pruning ratio {work.arm.pruning_ratio:g}, rank {work.arm.rank}"
        case ProbeWork():
            return f"probe, {work.form}"
        case ZeroOrderWork():
            return (
                f"zero order, {work.num_outer} x {work.num_inner} perturbations, cut {work.cut}, rank {work.arm.rank}"
            )


def num_steps_of(work: LoraWork | ProbeWork | ZeroOrderWork) -> int:
    """Steps that the work will count."""
    match work:
        case LoraWork():
            return work.hyper_parameters.num_local_steps
        case ProbeWork():
            return work.num_steps if work.form == "softmax" else 1
        case ZeroOrderWork():
            return work.num_local_steps


def may_rebuild(work: LoraWork | ProbeWork | ZeroOrderWork) -> bool:
    """Whether the payload may come of what the device has: then it is not pulled before that was tried."""
    return isinstance(work, ZeroOrderWork) and bool(work.log)
