"""What a device may be asked to do: the union :data:`Work`, a member for each method, which an assignment carries."""

from __future__ import annotations

import typing
from typing import Annotated, Literal

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import (
    AxisNumber,
    Beta,
    Count,
    Decay,
    Factor,
    Name,
    Positive,
    PruningRatio,
    Seed,
    Share,
)
from edge_runtime.formats.adapter import Trainable
from edge_runtime.formats.plan import Plan


class AxisValue(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm has on an axis that has no field of its own."""

    name: Name
    value: AxisNumber


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A point on the axes of a method (:mod:`edge_runtime.wire.arms`): LoRA's two have fields, others are ``more``."""

    pruning_ratio: PruningRatio
    rank: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_RANK)]
    more: Annotated[tuple[AxisValue, ...], msgspec.Meta(max_length=limits.MAX_AXES)] = ()
    """On other axes, by name, ascending."""

    def __post_init__(self) -> None:
        """Refuse values that are not in order, named twice, or of an axis that has a field.

        Raises:
            ValueError: they are.
        """
        names = [one.name for one in self.more]
        if sorted(set(names)) != names or not {"pruning_ratio", "rank"}.isdisjoint(names):
            msg = f"values of further axes {names}: expected other names than the fields', each once, ascending"
            raise ValueError(msg)

    def value(self, name: str) -> float | None:
        """On an axis; None where the arm does not say it."""
        match name:
            case "pruning_ratio":
                return self.pruning_ratio
            case "rank":
                return self.rank
            case _:
                return next((one.value for one in self.more if one.name == name), None)


class HyperParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a round may change without a new export."""

    learning_rate: Factor
    weight_decay: Decay
    lora_scaling: Factor
    """alpha / rank, the same for every rank, so that products of factors of different ranks may be added."""
    max_grad_norm: Factor | None
    """Clipping by global norm; None = off."""
    num_warmup_steps: Count
    """Optimizer steps of linear warm-up at the start of the assignment."""
    num_local_steps: Positive
    """Optimizer steps of the assignment."""
    batch_size: Positive
    """Examples in a micro-batch."""
    num_accumulation_steps: Positive
    """Micro-batches in one optimizer step."""
    max_length: Positive
    """Tokens; longer examples are truncated (text-classification) or cut into windows (causal-lm)."""
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Factor = 1e-8
    seed: Seed
    """Order of the examples."""
    importance_every_steps: Count = 0
    """Optimizer steps from one scoring of the units to the next, and the scores go up with the update; 0 = off."""
    class_balance: Share = 0.0
    """From 0, examples as they come, to 1, all classes of a device as often (text-classification)."""
    trainable: Trainable = "all"
    """``lora_b``: the A factors stay as they came, bit for bit, and are left out of the update."""


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """A shrinking inside an assignment: before optimizer step ``at_step`` (1-based) only ``plan`` stays."""

    at_step: Positive
    plan: Plan


class LoraWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="lora"):
    """First-order training of LoRA factors on a slice of the model."""

    arm: Arm
    plan: Plan
    hyper_parameters: HyperParameters
    prunings: Annotated[tuple[Pruning, ...], msgspec.Meta(max_length=limits.MAX_PRUNINGS)] = ()
    """By ascending step, each plan within the one before; nothing is restarted, and the update is under the last."""

    def __post_init__(self) -> None:
        """Refuse prunings that are out of order or would never happen.

        Raises:
            ValueError: they are.
        """
        steps = [pruning.at_step for pruning in self.prunings]
        if sorted(set(steps)) != steps or (steps and steps[-1] > self.hyper_parameters.num_local_steps):
            msg = f"prunings at steps {steps} must ascend within {self.hyper_parameters.num_local_steps} local steps"
            raise ValueError(msg)

    def __str__(self) -> str:
        """A few words."""
        return f"pruning ratio {self.arm.pruning_ratio:g}, rank {self.arm.rank}"

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return self.hyper_parameters.num_local_steps

    @property
    def final_plan(self) -> Plan:
        """The plan that the update is under."""
        return self.prunings[-1].plan if self.prunings else self.plan


class ProbeWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="probe"):
    """A linear head on features of the frozen model (text-classification); forward passes only."""

    plan: Plan
    form: Literal["softmax", "statistics"]
    """``softmax``: the head after exact gradient steps on all examples. ``statistics``: sums that a ridge regression is
    solved from, in any order."""
    batch_size: Positive
    """Examples in a forward pass."""
    max_length: Positive
    """Tokens; longer examples are truncated."""
    num_steps: Positive = 100
    """Gradient steps (``softmax``)."""
    learning_rate: Factor = 1.0
    l2: Decay = 0.0
    """Penalty of the weights, not of the bias: loss + l2 / 2 * sum of squares (``softmax``)."""

    def __str__(self) -> str:
        """A few words."""
        return f"probe, {self.form}"

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return self.num_steps if self.form == "softmax" else 1


WorkType = Literal["lora", "probe"]
"""Tags of :data:`Work`."""

Work = LoraWork | ProbeWork
"""What a device may be asked to do, by the tag ``type``: one member for each method."""


def type_of(tag: WorkType) -> type[Work]:
    """The member of the union that has a tag."""
    members: tuple[type[Work], ...] = typing.get_args(Work)
    return next(member for member in members if member.__struct_config__.tag == tag)
