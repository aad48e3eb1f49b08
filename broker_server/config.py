"""Configuration of a run: frozen dataclasses, checked on construction, read from and written to TOML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from broker_server.errors import ConfigError
from broker_server.methods.by_name import (
    check_method,
    completed,
    method_of,
    passed_over,
    read_own_options,
    trained_sparsity,
    with_text,
)
from broker_server.methods.own_options import text_of
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.tables import MethodTables
from broker_server.methods.training import TrainingConfig
from broker_server.naming import as_key
from broker_server.options import Panel, Written, flat, from_toml, option, to_toml, zero_for_none
from broker_server.ranges import check_fields
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Name, Positive, Seconds, Seed
from edge_runtime.errors import FedSpineError
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.formats.transforms import TransformError, parse_transforms
from edge_runtime.wire.arms import MAX_PRUNING_RATIO, PRUNING_RATIO, ArmError, Axes
from edge_runtime.wire.work import Arm

Duration = Annotated[float, msgspec.Meta(gt=0, le=limits.LONGEST_S)]

CONFIG_FILE: Final = "config.toml"
"""In a run's directory."""

ARMS: Final = Written(
    str,
    lambda text, method: method_of(method).axes.parse(text),
    lambda arms, method: method_of(method).axes.format(arms),
    by="method",
)
"""Arms are written as the method's axes are: those of LoRA ``RATIO:RANK,...``."""

OWN_OPTIONS: Final = Written(
    str, read_own_options, lambda options, _: None if options is None else text_of(options), by="method"
)
"""Options of a package's method are written ``NAME=VALUE,...``; in ``config.toml`` they are a table."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfig(MethodTables):
    """The training settings that ``fedspine run`` and ``config.toml`` have in common."""

    num_devices: Positive = option(Panel.TRAINING, "devices that take part", name="devices")
    """Devices that the first round waits for (at most ``registration_timeout_s``); later ones: see ``rejoin_s``."""
    training: TrainingConfig
    arms: tuple[Arm, ...] = option(
        Panel.TRAINING,
        "arms, with LoRA a pruning ratio and a rank each, such as 0.0:8,0.25:8,0.5:4",
        by="method",
        written=ARMS,
    )
    """Arms that the scheduler may play; for one that plays between them, the corners of its space."""
    method: str = option(
        Panel.TRAINING,
        "method by name, such as fedspine or fedit (`fedspine methods` lists them). It brings settings; the options "
        "that are given win",
        "",
    )
    method_options: Any = option(
        Panel.TRAINING,
        "options of a package's method, such as NAME=VALUE,NAME=VALUE; `fedspine methods` lists them",
        None,
        by="method",
        written=OWN_OPTIONS,
    )
    """Of the class :attr:`broker_server.methods.method.Method.own_options`; None = its defaults, or there are none."""
    scheduler: str = option(
        Panel.TRAINING,
        "what chooses each device's arm: fedspine, uniform, ... (docs/scheduler.md)",
        "uniform",
        by="method",
    )
    aggregation: str = option(
        Panel.TRAINING,
        "rule that combines updates: fedspine, fedspine_holders, fedit, ... (docs/aggregation.md) (default: by method, "
        "task and class balance)",
        "fedspine",
    )
    seed: Seed = option(Panel.TRAINING, "seed of all random choices", 0)
    num_evaluation_examples: Positive | None = option(
        Panel.TRAINING,
        "held-out examples to evaluate on after each round; 0 = all. The last round is evaluated on all of them too",
        1000,
        name="eval_examples",
        by="task",
        written=zero_for_none(Count, 0),
    )
    """A seeded sample; None = always all."""
    round_deadline_s: Duration = option(
        Panel.TRAINING, "most seconds that a round may take", 600.0, name="round_deadline"
    )
    update_transforms: str = option(
        Panel.TRAINING,
        "transforms of each update before it is combined, such as clip:1.0,noise:0.001 (default: none)",
        "",
    )
    """See docs/aggregation.md; empty = nothing."""
    pruning: PruningConfig = dataclasses.field(default_factory=PruningConfig)
    eval_sparse: bool = option(
        Panel.PRUNING, "evaluate the sub-model at --sparsity after every round, not only after the last", default=False
    )
    """Else only in the last."""
    sparsity: float | None = option(
        Panel.RESULT,
        "pruning ratio of the compact model (default: the smallest above 0 in --arms, or 0 where no arm prunes)",
        None,
    )
    """That of the deploy rounds and of the evaluation of the sub-model; None = neither."""
    keep: Literal["last", "best"] = option(
        Panel.RESULT,
        "round whose adapter is the result: last, or best (chosen on the held-out examples, so its figure on them is a "
        "little too good)",
        "last",
    )
    wire_dtype: WireDtype = option(
        Panel.PROCESSES, "type of the numbers that devices and server exchange: float32 or float16", "float32"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        axes = self.axes
        if not self.arms:
            msg = f"no arms given: expected at least one {axes.form}, such as {axes.example}"
            raise ArmError(msg)
        for arm in self.arms:
            axes.check(arm)
        try:
            parse_transforms(self.update_transforms)
        except TransformError as error:
            msg = f"update_transforms is {self.update_transforms[:100]!r}: {error}"
            raise ConfigError(msg) from error
        if self.pruning.deploy_rounds and self.sparsity is None:
            msg = f"deploy_rounds is {self.pruning.deploy_rounds}, but no sparsity is given to deploy"
            raise ConfigError(msg)
        if self.pruning.deploy_rounds and not axes.has(PRUNING_RATIO.name):
            msg = f"deploy_rounds is {self.pruning.deploy_rounds}, but {self.method} does not prune: leave them out"
            raise ConfigError(msg)
        check_method(self.method, flat(self))

    @property
    def axes(self) -> Axes:
        """Return the axes of its method's arms."""
        return method_of(self.method).axes

    @property
    def unused(self) -> frozenset[str]:
        """Options that its method does not use: a file has none of them."""
        return passed_over(self.method)

    @property
    def max_rank(self) -> int:
        """Rank of the global adapter: the largest of the arms."""
        return max(arm.rank for arm in self.arms)

    def learning_rate_at(self, round_number: int) -> float:
        """Learning rate of a round (1-based).

        A cosine from ``learning_rate`` to its final ratio over the rounds before the deploy rounds. Those begin again
        at ``deploy_learning_rate_ratio`` of it, and end at the same final ratio: a model that has just lost units must
        move to recover. A warm restart as in SGDR (arXiv 1608.03983); its place and height are ours.
        """
        peak, num_deploy = self.training.learning_rate, min(self.pruning.deploy_rounds, self.training.num_rounds)
        low = peak * self.training.final_learning_rate_ratio
        index, length = round_number - 1, self.training.num_rounds - num_deploy
        if index >= length:
            peak = max(low, peak * self.pruning.deploy_learning_rate_ratio)
            index, length = index - length, num_deploy
        progress = min(1.0, index / max(1, length - 1))
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig(FederationConfig):
    """Settings of the coordinator process; stored as ``config.toml`` in the run directory."""

    run_id: Name
    """Unique name of the run."""
    fleet: Name
    """Level of the MQTT topics that separates fleets on one broker."""
    broker_url: str
    """``mqtt://host:port`` or ``mqtts://user@host:8883``; a password comes from ``FEDSPINE_BROKER_PASSWORD``."""
    artifact_url: Annotated[str, msgspec.Meta(min_length=1, max_length=1_900)]
    """Base URL under which ``artifacts/`` is served, with a slash at the end."""
    artifact_digest: str
    """Digest of the artifact to train."""
    emulation_file: str | None = None
    """Classes of emulated devices, relative to the run directory (docs/emulation.md); None = wall time."""
    max_share: Annotated[float, msgspec.Meta(ge=0.5, le=1)] = 0.5
    """Largest share of a round's examples that one of three or more devices counts with; 1 = no ceiling."""
    registration_timeout_s: Duration = 120.0
    """Longest wait for ``num_devices``; then the round starts with those that are there (one or more)."""
    rejoin_s: Seconds = 5.0
    """Wait of a round for a device that went offline to come back. A later round also waits this long before it
    starts, until as many devices are online as answered in the round before."""
    test_file: str | None = None
    """Held-out examples for the server's evaluation, relative to the run directory or absolute."""
    base_model: str | None = None
    """Directory (relative to the run directory, or absolute) or hub id of the model that the artifact was made from:
    named in ``adapters/peft``, where PEFT looks for it. None = not known."""
    num_threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 2
    """Threads of the server's evaluation."""
    broker_ca_file: str | None = None
    """Authority that signed the broker's certificate (PEM); None = the system's."""
    broker_cert_file: str | None = None
    """The coordinator's own certificate (PEM)."""
    broker_key_file: str | None = None
    """Its private key (PEM)."""
    callbacks: str = ""
    """Told of each round, names with commas: see docs/extending.md."""
    max_devices: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    """Devices that are known at a time; a new one takes the place of that which has been offline longest."""

    def __post_init__(self) -> None:
        try:
            FederationConfig.__post_init__(self)
        except ConfigError as error:
            raise as_key(error) from error
        if self.num_devices > self.max_devices:
            msg = f"num_devices is {self.num_devices}, but max_devices lets no more than {self.max_devices} register"
            raise ConfigError(msg)

    def to_toml(self) -> str:
        """TOML text that :meth:`from_toml` reads back to an equal configuration."""
        return to_toml(self, self.unused)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read a configuration; its method's settings count where it does not say others.

        Raises:
            ConfigError: not TOML, an unknown or missing key, a wrong type, or a value out of range; or an unknown
                method.
            ArmError: an arm outside its range.
        """
        return from_toml(text, cls, _with_method)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration from a file.

        Raises:
            ConfigError: the file cannot be read, or see :meth:`from_toml`.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"configuration {path} cannot be read: {error.strerror if isinstance(error, OSError) else error}"
            raise ConfigError(msg) from error
        try:
            return cls.from_toml(text)
        except (ConfigError, ArmError) as error:
            msg = f"{path}: {error}"
            raise type(error)(msg) from error


def _with_method(given: Mapping[str, object]) -> Mapping[str, object]:
    """Options of a configuration with those of its method, and with the deployed plan's options if it deploys one."""
    name, rounds = given.get("method"), given.get("rounds")
    try:
        given = with_text(given)
    except FedSpineError as error:
        raise as_key(error) from error
    if not isinstance(name, str) or not name or not isinstance(rounds, int):
        return given  # the reader of the configuration reports the error
    try:
        method = method_of(name)
        found = {"arms": method.default_arms, **completed(name, given, rounds=rounds)}
    except FedSpineError as error:
        raise as_key(error) from error
    if found.get("deploy_rounds") and "sparsity" not in found:
        found["sparsity"] = trained_sparsity(method.axes.parse(str(found["arms"])))
    return found


def check_sparsity(sparsity: float) -> None:
    """Refuse a pruning ratio that no sub-model may have.

    Raises:
        ArmError: it is outside the range.
    """
    if not 0.0 <= sparsity <= MAX_PRUNING_RATIO:
        msg = f"sparsity is {sparsity}, expected a pruning ratio of 0 to {MAX_PRUNING_RATIO}"
        raise ArmError(msg)
