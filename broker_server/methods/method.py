"""The server's side of a method: the work that devices get, the check of a reply, and the next model from replies.

A method does arithmetic and opens no file; one that trains here runs the engine on the run's artifact. State machine,
transfers, storage, report and emulation do not depend on any method: they carry :class:`AssignedWork`, bytes and
:class:`Reply`. The device's side is a room of the same name.

Devices start from the global model, the server evaluates it, and the checkpoint of a round holds it. For every method
it is an adapter on the frozen base (:class:`broker_server.methods.aggregation.Aggregated`).
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
    """The content of one assignment, with all that its time and its update depend on."""

    work: Work
    """As it is sent: an update is read under what was *sent*, also by a coordinator that was restarted in between."""
    arm: Arm
    """Arm that the scheduler chose."""
    segments: tuple[Segment, ...]
    """Ratios of its steps, the first at step 1."""
    start_sparsity: float
    """Measured fraction of the prunable weights that the first step's plan removes, [0, 1)."""
    sparsity: float
    """The same of the last step's plan, which the update is under."""
    num_steps: int
    """Optimizer steps."""

    @classmethod
    def under_one_plan(cls, work: Work, arm: Arm, *, num_steps: int, sparsity: float = 0.0) -> Self:
        """Work whose plan does not change on the way.

        Args:
            work: as it is sent.
            arm: its plan has this arm's pruning ratio.
            num_steps: 1 or more.
            sparsity: measured fraction that the plan removes.
        """
        segments = (Segment(at_step=1, pruning_ratio=arm.pruning_ratio),)
        return cls(
            work=work, arm=arm, segments=segments, start_sparsity=sparsity, sparsity=sparsity, num_steps=num_steps
        )

    bytes_down: int = 0
    """Assignment and blob, bytes."""
    sent_at: float | None = None
    """Time when it was first sent, Unix seconds; None = not yet."""
    most_examples: int | None = None
    """Examples that its device had registered by then: the largest weight of its update. None as above."""
    is_deploy: bool | None = None
    """Whether its round is a deploy round; None = not said (methods without any, and earlier releases)."""

    @property
    def start_arm(self) -> Arm:
        """The arm that its first step plays: what must fit the device's memory."""
        return msgspec.structs.replace(self.arm, pruning_ratio=self.segments[0].pruning_ratio)

    @property
    def played_arm(self) -> Arm:
        """The arm that its last step plays: that of the scheduler, as far as the ramp went."""
        return msgspec.structs.replace(self.arm, pruning_ratio=self.segments[-1].pruning_ratio)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An accepted update."""

    device_id: str
    work: Work
    """Work that was asked for."""
    num_examples: int
    """Weight of the device, 0 or more."""
    tensors: Tensors
    """Those of floats by name, each read from disk when it is asked for; checked when it arrived."""
    read: Callable[[], bytes]
    """The whole blob, read from disk."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The next model, made from replies."""

    model: Aggregated
    importance: Scores
    """Scores that rank the units from now on."""
    deltas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By device, the Frobenius norm of the change of B A that its training made; empty if no factor is trained."""
    not_finite: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """By device, how many of its measurements were not finite and count as 0; empty if none are counted."""


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
    """Settings that some methods have beside those of training."""
    own_options: Any = None
    """An object of :attr:`Method.own_options`; None = the method has none."""
    artifact: Artifact | None = None
    """Of the run, for methods that train here; None = nothing is trained here."""
    num_threads: int = 1
    """Threads of training here."""

    def hyper_parameters(
        self, round_number: int, device_id: str, *, importance_every_steps: int = 0, trainable: Trainable = "all"
    ) -> HyperParameters:
        """Settings of training under the names that they have there; and what depends on more than one setting.

        Args:
            round_number: 1 or more.
            device_id: whose examples are trained on: their order is its own.
            importance_every_steps: see :class:`HyperParameters`, as the next.
            trainable: see there.
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
    """Tag of the work that devices are asked for: they get ready for it before the first assignment."""
    device_method: ClassVar[str] = ""
    """Name of the device's side, where the work is :class:`edge_runtime.wire.work.PluginWork`: of the entry point by
    which the same package offers it to devices."""
    device_class: ClassVar[str] = ""
    """Its class, ``module:Class``, for devices that ``fedspine run`` starts itself; others must have the package."""
    asks: ClassVar[str] = ""
    """Description of the work that devices get, one line, for people."""
    axes: ClassVar[Axes] = Axes()
    """Axes of its arms; none = it has one arm. All code that reads, chooses or shows an arm goes by this."""
    default_arms: ClassVar[str] = ""
    """Arms by default, as they are written."""
    uses: ClassVar[frozenset[str]] = frozenset({"rounds", "local_steps", "batch_size", "max_length"})
    """Names of the options of training, pruning and zero-order tuning that it uses. If a user gives another one, it is
    refused (:mod:`broker_server.methods.by_name`)."""
    own_options: ClassVar[type[Any] | None] = None
    """A frozen dataclass of options that this method alone has, each field a
    :func:`broker_server.methods.own_options.method_option`. A run gives them (``--method-options``), and
    :attr:`MethodContext.own_options` has them. None = there are none."""
    averages: ClassVar[bool] = True
    """Whether replies are models that are averaged by their examples: then one device's share is limited, and update
    transforms apply to its change. Otherwise replies are sums that are added as they are."""
    asks_once: ClassVar[bool] = False
    """Whether a device is asked once in a run: its reply stays on the server's disk and counts in every later round,
    whether the device is there or not. Such rounds ask only devices whose replies are not there."""
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
        """Make the method that a run's settings ask for: this one, unless they ask for another form of it."""
        return cls(context)

    def initial(self, dense: Tensors, rng: np.random.Generator) -> Aggregated:
        """The model before training: A at random, B zero, so that nothing is changed.

        Args:
            dense: trained tensors without factors (heads), as the artifact has them.
            rng: values of A.
        """
        return Aggregated(adapter=initial(self._manifest, dense, self._context.max_rank, rng))

    @classmethod
    def check_settings(cls, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
        """Refuse settings that this method cannot keep to.

        Args:
            settings: values of all options, by name, as they are written.
            manifest: of the artifact; None = it is not known yet.

        Raises:
            ConfigError: begins with the option.
        """
        del settings, manifest

    @classmethod
    def check_one_arm(cls, settings: Mapping[str, object], what: str) -> None:
        """Refuse several arms, for methods whose devices all have the same; the parser of arms reports what is none.

        Args:
            settings: see :meth:`check_settings`.
            what: takes one rank for all devices.

        Raises:
            ConfigError: there are several.
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
        """Refuse a model from elsewhere that training is to begin with; most methods begin with any.

        Raises:
            ConfigError: this method cannot train it.
        """
        del model

    @abc.abstractmethod
    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Return the work for a device.

        Args:
            key: of the assignment.
            arm: that the scheduler chose.
            at_once: whether the arm's ratio is played in full from the first step on, without a ramp.
            model: that devices start from.
        """

    def is_averaged(self, work: Work) -> bool:
        """Return whether replies to a piece of work are averaged: see :attr:`averages`."""
        del work
        return self.averages

    def kept(self, work: Work) -> Work:
        """Return the part of a piece of work that is needed to read its reply, or to send it again after a restart."""
        return work

    @abc.abstractmethod
    def start_kind(self, work: Work) -> Hashable:
        """Equal for two pieces of work of one round exactly if both start from the same."""

    @abc.abstractmethod
    def start(self, model: Aggregated, work: Work) -> Payload | None:
        """Return the tensors that a device starts from; None = it needs none."""

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the tensors of a reply that were trained: what update transforms apply to.

        None, unless a method says otherwise.
        """
        del work
        return {}

    def before(self, model: Aggregated, work: Work, name: str) -> Array:
        """Return a trained tensor of a reply as it was before training, float32, of its shape in the reply.

        It is the model's, unless a method says otherwise.
        """
        del work
        return model.adapter[name]

    @abc.abstractmethod
    def most_bytes(self, work: Work) -> int:
        """The most bytes that a reply may have."""

    @abc.abstractmethod
    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Decode a reply and refuse one that is not what was asked for. Each reply passes here once, when it arrives.

        Args:
            work: what was asked for.
            blob: from the network.
            num_examples: what the device says it has.

        Raises:
            TensorError: malformed, or other names, shapes, types or values than were asked for.
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
        """The next model.

        Args:
            round_number: 1 or more.
            before: what devices started from.
            importance: scores that rank the units so far.
            replies: one or more; the result does not depend on their order.
            rng: of the round; the same after a restart.

        Raises:
            AggregationError: nothing usable comes out.
        """
