"""The server's side of a method: the work that devices get, the check of a reply, and the next model from replies.

A method does arithmetic and opens no file; a method that trains on the server runs the engine on the run's artifact.
State machine, transfers, storage, report and emulation do not depend on any method: they handle :class:`AssignedWork`,
bytes and :class:`Reply`. The device's side is in a package of the same name.

Devices start from the global model, the server evaluates it, and a checkpoint of it is written after each round. For
every method the global model is an adapter on the frozen base
(:class:`broker_server.methods.aggregation.Aggregated`).
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec
import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.pruning.schedule import Segment
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.tables import MethodTables
from broker_server.methods.training import TrainingConfig
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.adapter import Array, Tensors, Trainable, initial
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.arms import ArmError, Axes
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, HyperParameters, Work, WorkType


class AssignedWork(msgspec.Struct, frozen=True, kw_only=True):
    """The content of one assignment, and the facts that determine its time and its update."""

    work: Work
    """The work as it was sent; the update is read under it, even after a restart of the coordinator."""
    arm: Arm
    """Arm that the scheduler chose."""
    segments: tuple[Segment, ...]
    """Pruning ratios of the steps, the first at step 1."""
    start_sparsity: float
    """Measured fraction of the prunable weights that the first step's plan removes, [0, 1)."""
    sparsity: float
    """The same fraction for the last step's plan, which is the plan of the update."""
    num_steps: int
    """Optimizer steps."""

    @classmethod
    def under_one_plan(cls, work: Work, arm: Arm, *, num_steps: int, sparsity: float = 0.0) -> Self:
        """Make work with one plan for all steps.

        Args:
            work: the work to send.
            arm: arm of the work; the plan has its pruning ratio.
            num_steps: optimizer steps, 1 or more.
            sparsity: measured fraction of the prunable weights that the plan removes.
        """
        segments = (Segment(at_step=1, pruning_ratio=arm.pruning_ratio),)
        return cls(
            work=work, arm=arm, segments=segments, start_sparsity=sparsity, sparsity=sparsity, num_steps=num_steps
        )

    bytes_down: int = 0
    """Size of assignment and blob, bytes."""
    sent_at: float | None = None
    """Time when it was first sent, Unix seconds; None = not sent yet."""
    most_examples: int | None = None
    """Examples that the device had registered when it was sent: the largest weight of the update. None = not sent."""
    is_deploy: bool | None = None
    """Whether its round is a deploy round; None = unknown (methods without deploy rounds, and earlier releases)."""

    @property
    def start_arm(self) -> Arm:
        """The arm of the first step, which needs the most memory on the device."""
        return msgspec.structs.replace(self.arm, pruning_ratio=self.segments[0].pruning_ratio)

    @property
    def played_arm(self) -> Arm:
        """The arm of the last step: the scheduler's arm, at the ratio that the ramp allows."""
        return msgspec.structs.replace(self.arm, pruning_ratio=self.segments[-1].pruning_ratio)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An accepted update."""

    device_id: str
    work: Work
    """Work of the assignment."""
    num_examples: int
    """Weight of the device, 0 or more."""
    tensors: Tensors
    """Tensors of floats by name, read from disk lazily; they were checked on arrival."""
    read: Callable[[], bytes]
    """Reads the whole blob from disk."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The next model, made from replies."""

    model: Aggregated
    importance: Scores
    """Scores that rank the units from now on."""
    deltas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Frobenius norm of the change of B A by training, by device; empty if no factor is trained."""
    not_finite: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of scalars that were not finite and count as 0, by device; empty if the method counts none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodContext:
    """The settings and plans of the run that a method may use."""

    manifest: Manifest
    plans: Plans
    training: TrainingConfig
    learning_rate_at: Callable[[int], float]
    """Learning rate of a round (1-based)."""
    is_deploy: Callable[[int], bool]
    """Whether a round (1-based) is a deploy round."""
    pruning: PruningConfig
    aggregation: str
    """Name of the rule that combines adapters."""
    max_rank: int
    """Rank of the global adapter."""
    seed: int
    tables: MethodTables = dataclasses.field(default_factory=MethodTables)
    """Further settings of some methods, beside those of training."""
    own_options: Any = None
    """An object of :attr:`Method.own_options`; None = the method has none."""
    artifact: Artifact | None = None
    """Artifact of the run, for methods that train on the server; None = nothing is trained on the server."""
    num_threads: int = 1
    """Threads of training on the server."""

    def hyper_parameters(
        self, round_number: int, device_id: str, *, importance_every_steps: int = 0, trainable: Trainable = "all"
    ) -> HyperParameters:
        """Make the hyper-parameters of an assignment from the settings of training.

        Args:
            round_number: 1 or more.
            device_id: the device; the order of examples depends on it.
            importance_every_steps: see :class:`HyperParameters`.
            trainable: see :class:`HyperParameters`.
        """
        entropy = (self.seed, round_number, zlib.crc32(device_id.encode()))
        shared = {
            name: getattr(self.training, name)
            for name in HyperParameters.__struct_fields__
            if hasattr(self.training, name)
        }
        made = {
            "learning_rate": self.learning_rate_at(round_number),
            "seed": int(np.random.SeedSequence(entropy).generate_state(1)[0]),
            "importance_every_steps": importance_every_steps,
            "trainable": trainable,
        }
        return HyperParameters(**(shared | made))


class Method(abc.ABC):
    """One method. It keeps no state between rounds: the model and the assignments hold all state."""

    work_type: ClassVar[WorkType] = "lora"
    """Tag of the method's work; devices prepare for it before the first assignment."""
    device_method: ClassVar[str] = ""
    """Name of the method's device side, for :class:`edge_runtime.wire.work.PluginWork`: the name of the entry point
    with which the same package offers it to devices."""
    device_class: ClassVar[str] = ""
    """Class of the device side, ``module:Class``, for devices started by ``fedspine run``; others need the package."""
    asks: ClassVar[str] = ""
    """Description of the devices' work, one line, for people."""
    axes: ClassVar[Axes] = Axes()
    """Axes of the method's arms; without axes it has one arm. All code that reads, chooses or shows arms uses them."""
    default_arms: ClassVar[str] = ""
    """Default arms, in their written form."""
    uses: ClassVar[frozenset[str]] = frozenset({"rounds", "local_steps", "batch_size", "max_length"})
    """Names of the options of training, pruning and zero-order tuning that the method uses. Other such options are
    refused (:mod:`broker_server.methods.by_name`)."""
    own_options: ClassVar[type[Any] | None] = None
    """A frozen dataclass of options that this method alone has, each field a
    :func:`broker_server.methods.own_options.method_option`. A run gives them (``--method-options``), and
    :attr:`MethodContext.own_options` has them. None = there are none."""
    averages: ClassVar[bool] = True
    """Whether replies are models that are averaged by numbers of examples. Then the share of one device is limited, and
    update transforms apply to its change. Otherwise replies are sums, which are added unchanged."""
    asks_once: ClassVar[bool] = False
    """Whether a device is asked once in a run: its reply stays on the server's disk and counts in every later round,
    even if the device is gone. Later rounds ask only devices without a reply."""
    sends_examples: ClassVar[bool] = False
    """Whether replies hold activations and labels of single examples: a device takes part only if its owner allows it
    (``fedspine-edge start --send-activations``)."""
    is_start_exact: ClassVar[bool] = False
    """Whether devices start from float32 whatever the run's ``wire_dtype``, because they repeat the server's steps."""

    first_work: ClassVar[WorkType | None] = None
    """Tag of other work that its run may begin with, for the model that its own work starts from: a report tells the
    gain over that model. None = there is none."""
    has_step_times: ClassVar[bool] = True
    """Whether its steps take the time that calibration measures, so that devices can be emulated."""

    def __init__(self, context: MethodContext) -> None:
        self._context = context
        self._manifest = context.manifest

    @classmethod
    def of(cls, context: MethodContext) -> Method:
        """Make the method for a run's settings: an object of this class, or of another form of the method."""
        return cls(context)

    def initial(self, dense: Tensors, rng: np.random.Generator) -> Aggregated:
        """The model before training: A is random and B is zero, so the base model is unchanged.

        Args:
            dense: initial dense tensors (heads) of the artifact.
            rng: draws A.
        """
        return Aggregated(adapter=initial(self._manifest, dense, self._context.max_rank, rng))

    @classmethod
    def check_settings(cls, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
        """Refuse settings that this method does not support.

        Args:
            settings: values of all options, by name, in their written form.
            manifest: manifest of the artifact; None = not known yet.

        Raises:
            ConfigError: begins with the option.
        """
        del settings, manifest

    @classmethod
    def check_one_arm(cls, settings: Mapping[str, object], what: str) -> None:
        """Refuse several arms, for methods with one arm for all devices; the parser of arms reports malformed arms.

        Args:
            settings: see :meth:`check_settings`.
            what: subject of the error, which takes one rank for all devices.

        Raises:
            ConfigError: there are several arms.
        """
        text = str(settings["arms"])
        try:
            arms = cls.axes.parse(text)
        except ArmError:
            return
        if len(arms) != 1:
            msg = f"--arms is {text!r}, but {what} takes one rank for all devices: give one such as 8"
            raise ConfigError(msg)

    def check_initial(self, model: Aggregated) -> None:
        """Refuse an initial model that the method cannot train; most methods accept every model.

        Raises:
            ConfigError: this method cannot train it.
        """
        del model

    @abc.abstractmethod
    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Return the work for a device.

        Args:
            key: key of the assignment.
            arm: arm that the scheduler chose.
            at_once: whether the arm's full ratio is used from the first step on, without a ramp.
            model: global model.
        """

    def is_averaged(self, work: Work) -> bool:
        """Return whether replies to a piece of work are averaged: see :attr:`averages`."""
        del work
        return self.averages

    def kept(self, work: Work) -> Work:
        """Return the work to store: the part that is needed to read the reply, or to send the work after a restart."""
        return work

    @abc.abstractmethod
    def start_kind(self, work: Work) -> Hashable:
        """Return a key that is equal for two works of one round if and only if both start from the same payload."""

    @abc.abstractmethod
    def start(self, model: Aggregated, work: Work) -> Payload | None:
        """Return the payload that a device starts from; None = it needs none."""

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the trained tensors of a reply, to which update transforms apply; by default none."""
        del work
        return {}

    def before(self, model: Aggregated, work: Work, name: str) -> Array:
        """Return the value of a trained tensor before training, float32, in its shape in the reply.

        By default it is the model's tensor.
        """
        del work
        return model.adapter[name]

    @abc.abstractmethod
    def most_bytes(self, work: Work) -> int:
        """Largest size of a reply in bytes."""

    @abc.abstractmethod
    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Decode a reply, and refuse it if it does not fit its work. Each reply is checked once, when it arrives.

        Args:
            work: work of the assignment.
            blob: bytes from the network.
            num_examples: number of examples that the device reports.

        Raises:
            TensorError: the reply is malformed, or its names, shapes, types or values do not fit the work.
            AggregationError: values are beyond every bound: training diverged.
        """

    @abc.abstractmethod
    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """Make the next model from the replies of a round.

        Args:
            round_number: 1 or more.
            before: model that devices started from.
            importance: current importance scores.
            replies: at least one; the result does not depend on their order.
            rng: generator of the round; the same after a restart.

        Raises:
            AggregationError: the result is not usable.
        """
