"""The kinds of work of a device: the union :data:`Work` has a member for each method; an assignment has one work."""

from __future__ import annotations

import typing
from typing import Annotated, Literal, TypeVar

import msgspec

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import (
    AxisNumber,
    Beta,
    Count,
    Decay,
    Deviation,
    Factor,
    Name,
    Positive,
    PruningRatio,
    Seed,
    Settings,
    Share,
)
from edge_runtime.errors import MessageError
from edge_runtime.formats.activations import ActivationDtype
from edge_runtime.formats.adapter import Trainable
from edge_runtime.formats.plan import PackedPlan
from edge_runtime.formats.seed_pool import Noise, SeedPool
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart


class AxisValue(msgspec.Struct, frozen=True, kw_only=True):
    """The value of an arm on an axis without its own field."""

    name: Name
    value: AxisNumber


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A point on the axes of a method (:mod:`edge_runtime.wire.arms`): LoRA's have fields, others are in ``more``."""

    pruning_ratio: PruningRatio
    rank: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_RANK)]
    more: Annotated[tuple[AxisValue, ...], msgspec.Meta(max_length=limits.MAX_AXES)] = ()
    """Values on other axes, sorted by name."""

    def __post_init__(self) -> None:
        """Check the values of ``more``.

        Raises:
            ValueError: they are not sorted, a name occurs twice, or an axis has its own field.
        """
        names = [one.name for one in self.more]
        if sorted(set(names)) != names or not {"pruning_ratio", "rank"}.isdisjoint(names):
            msg = f"values of further axes {names}: expected other names than the fields', each once, ascending"
            raise ValueError(msg)

    def value(self, name: str) -> float | None:
        """Value on an axis; None if the arm has no value on it."""
        match name:
            case "pruning_ratio":
                return self.pruning_ratio
            case "rank":
                return self.rank
            case _:
                return next((one.value for one in self.more if one.name == name), None)


class HyperParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Hyper-parameters that a round may change without a new export."""

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
    """Seed of the order of the examples."""
    importance_every_steps: Count = 0
    """Optimizer steps between two scorings of the units, whose scores are sent with the update; 0 = off."""
    class_balance: Share = 0.0
    """From 0, every example equally often, to 1, every class of a device equally often (text-classification)."""
    trainable: Trainable = "all"
    """``lora_b``: the A factors are not changed, and are left out of the update."""


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """A shrinking inside an assignment: before optimizer step ``at_step`` (1-based) only ``plan`` stays."""

    at_step: Positive
    plan: PackedPlan


class WithoutHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Work whose payload is always pulled."""

    @property
    def has_history(self) -> bool:
        """Return whether the work holds earlier rounds from which a device may rebuild the payload."""
        return False


class LoraWork(WithoutHistory, frozen=True, kw_only=True, tag_field="type", tag="lora"):
    """First-order training of LoRA factors on a slice of the model."""

    arm: Arm
    plan: PackedPlan
    hyper_parameters: HyperParameters
    prunings: Annotated[tuple[Pruning, ...], msgspec.Meta(max_length=limits.MAX_PRUNINGS)] = ()
    """Prunings by ascending step, each plan within the one before; training goes on; the update is under the last."""

    def __post_init__(self) -> None:
        """Check the prunings.

        Raises:
            ValueError: they are out of order, or after the last step.
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
    def final_plan(self) -> PackedPlan:
        """The last plan, which is the plan of the update."""
        return self.prunings[-1].plan if self.prunings else self.plan


class ProbeWork(WithoutHistory, frozen=True, kw_only=True, tag_field="type", tag="probe"):
    """A linear head on features of the frozen model (text-classification); forward passes only."""

    plan: PackedPlan
    form: Literal["softmax", "statistics"]
    """``softmax``: the reply is the head after exact gradient steps on all examples. ``statistics``: the reply is sums
    from which the server solves a ridge regression."""
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


class ZeroOrderWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="zero_order"):
    """Tuning of B factors and head by forward passes alone, on the whole model; the reply is a scalar per perturbation.

    All zero-order methods use this form. MeZO and DeComFL have ``num_inner`` 1: both parts are perturbed together, and
    have one learning rate. FedSPZO has ``num_inner`` above 1: the lower part's activations are shared by that many
    perturbations of the upper part. With a ``lower_learning_rate`` of 0 the lower part runs once for a batch (top-k).
    """

    arm: Arm
    """Its rank is the rank of the tuned adapter; nothing is pruned."""
    seed: Seed
    """Key of the noise, the same for all devices in all rounds."""
    cut: Count
    """See :class:`LoggedRound`; 0 = all blocks are the upper part."""
    lower_learning_rate: Decay
    learning_rate: Factor
    num_outer: Positive
    num_inner: Positive
    num_local_steps: Positive
    epsilon: Factor
    """Size of a perturbation."""
    largest_scalar: Factor | None = None
    """Beyond it a scalar is cut to it; None = none is."""
    batch_size: Positive
    max_length: Positive
    """Tokens; longer examples are truncated (text-classification) or cut into windows (causal-lm)."""
    lora_scaling: Factor
    is_normalised: bool = False
    """Whether differences are one-sided, and a step is divided by the standard deviation of its scalars (FZOO)."""
    preconditioner: PreconditionerStart | None = None
    """Start of H: noise is multiplied by H^-1/2 (HiSo), and the log has the rounds since the start. None = no H."""
    noise: Noise = "rademacher"
    log: Annotated[tuple[LoggedRound, ...], msgspec.Meta(max_length=limits.MAX_LOGGED_ROUNDS)] = ()
    """Rounds, by ascending number, that a device may replay instead of pulling the payload."""

    def __post_init__(self) -> None:
        """Check the log and the normalisation.

        Raises:
            ValueError: the log is out of order, or a step is normalised by a single scalar.
        """
        if self.is_normalised and self.num_outer * self.num_inner < 2:
            msg = "one scalar has no standard deviation to normalise by: 2 perturbations or more are needed"
            raise ValueError(msg)
        numbers = [logged.round_number for logged in self.log]
        if sorted(set(numbers)) != numbers:
            msg = f"rounds of the log {numbers} must ascend"
            raise ValueError(msg)

    def __str__(self) -> str:
        """A few words."""
        each = f"{self.num_outer} x {self.num_inner} perturbations"
        return f"zero order, {each}, cut {self.cut}, rank {self.arm.rank}"

    @property
    def has_history(self) -> bool:
        """Return whether the work holds earlier rounds from which a device may rebuild the payload."""
        return bool(self.log)

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return self.num_local_steps

    @property
    def scalars_shape(self) -> tuple[int, int]:
        """Shape of the scalars in a reply: steps, perturbations of each."""
        return self.num_local_steps, self.num_outer * self.num_inner


class SeedPoolWork(WithoutHistory, frozen=True, kw_only=True, tag_field="type", tag="seed_pool"):
    """Tuning of all weights by forward passes alone, along the noise of a pool of seeds; the reply is scalars.

    In each step a device draws ``num_perturbations`` seeds of the pool (FedKSeed, arXiv 2312.06353).
    """

    arm: Arm
    """Nothing is pruned; LoRA factors are not tuned, and stay 0."""
    pool: SeedPool
    """The model that the device starts from."""
    learning_rate: Factor
    num_perturbations: Positive
    num_local_steps: Positive
    epsilon: Factor
    """Size of a perturbation."""
    largest_scalar: Factor | None = None
    """Beyond it a scalar is cut to it; None = none is."""
    batch_size: Positive
    max_length: Positive
    """Tokens; longer examples are truncated (text-classification) or cut into windows (causal-lm)."""

    def __str__(self) -> str:
        """A few words."""
        return f"all weights along a pool of {self.pool.num_seeds} seeds, {self.num_perturbations} in a step"

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return self.num_local_steps

    @property
    def scalars_shape(self) -> tuple[int, int]:
        """Shape of the scalars in a reply: steps, perturbations of each."""
        return self.num_local_steps, self.num_perturbations


class SplitWork(WithoutHistory, frozen=True, kw_only=True, tag_field="type", tag="split"):
    """One forward pass of embedding and lower blocks per example; the reply is hidden states at the cut, and labels.

    A device is asked once in a run: the blocks below the cut are not tuned, so the server can train all other blocks on
    these hidden states in every round. After SplitFrozen (arXiv 2503.18986).
    """

    cut: Positive
    """Number of blocks that run on the device."""
    dtype: ActivationDtype
    """Coding of the hidden states."""
    batch_size: Positive
    """Examples in a forward pass."""
    max_length: Positive
    """Tokens; longer examples are truncated (text-classification) or cut into windows (causal-lm)."""
    noise: Deviation = 0.0
    """Deviation of Gaussian noise that the device adds before coding, over the root mean square of a token's state."""

    def __str__(self) -> str:
        """A few words."""
        noise = f", noise {self.noise:g}" if self.noise else ""
        return f"split, activations after {self.cut} blocks in {self.dtype}{noise}"

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return 1


OwnSettings = TypeVar("OwnSettings", bound=msgspec.Struct)


class PluginWork(WithoutHistory, frozen=True, kw_only=True, tag_field="type", tag="plugin"):
    """The work of a method of another package; a device without this package refuses the work."""

    method: Name
    """Name of the method on the device: of an entry point of the group ``fedspine.device_methods``, or a name that the
    owner of the device gave to a class. Messages from the network never name code."""
    plan: PackedPlan
    """The plan, not checked yet: the method opens it with the manifest of its artifact."""
    batch_size: Positive
    """Examples in a batch."""
    max_length: Positive
    """Tokens; longer examples are truncated (text-classification) or cut into windows (causal-lm)."""
    num_steps: Positive = 1
    """Steps that the device counts."""
    settings: Settings
    """Other settings of the method."""

    def __str__(self) -> str:
        """A few words."""
        return f"method {self.method} of an installed package"

    @property
    def num_counted_steps(self) -> int:
        """Steps that a device counts while it works."""
        return self.num_steps

    def settings_as(self, kind: type[OwnSettings]) -> OwnSettings:
        """Return the settings as a struct of the package, whose fields declare their types and ranges.

        Raises:
            MessageError: a setting is missing, has another type, or is out of range.
        """
        try:
            return msgspec.convert(self.settings, kind)
        except msgspec.ValidationError as error:
            msg = f"settings of method {self.method!r} refused: {error}"
            raise MessageError(msg) from error


WorkType = Literal["lora", "probe", "zero_order", "seed_pool", "split", "plugin"]
"""Tags of :data:`Work`."""

Work = LoraWork | ProbeWork | ZeroOrderWork | SeedPoolWork | SplitWork | PluginWork
"""The work of an assignment, by the tag ``type``; methods of installed packages share one member."""


def name_of(work: Work) -> str:
    """The kind of a piece of work, for people: its tag, or the name of a package's method."""
    return work.method if isinstance(work, PluginWork) else str(work.__struct_config__.tag)


def type_of(tag: WorkType) -> type[Work]:
    """The member of the union with a tag."""
    members: tuple[type[Work], ...] = typing.get_args(Work)
    return next(member for member in members if member.__struct_config__.tag == tag)
