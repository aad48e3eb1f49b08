"""Configuration of a run: frozen dataclasses, checked on construction, read from and written to TOML."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from broker_server.errors import ConfigError
from broker_server.methods.pruning.config import PruningConfig
from broker_server.ranges import MOST, Named, Range, Words, check_fields, from_table
from edge_runtime.bounds import limits
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire.arms import LORA_AXES, MAX_PRUNING_RATIO, ArmError, format_arms, parse_arms
from edge_runtime.wire.messages import Arm

Count = Annotated[int, Range(0, MOST)]
Positive = Annotated[int, Range(1, MOST)]
Factor = Annotated[float, Range(0, 1e6, above=True)]
"""Beyond it a float32 overflows where such numbers are multiplied."""
LONGEST_S: Final = limits.LONGEST_S


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How devices train."""

    num_rounds: Positive
    """Rounds, 1 or more."""
    num_local_steps: Positive
    """Optimizer steps of one assignment."""
    batch_size: Positive
    """Examples in a micro-batch."""
    max_length: Positive
    """Tokens in an example."""
    num_accumulation_steps: Positive = 1
    """Micro-batches in one optimizer step."""
    learning_rate: Factor = 2e-3
    """Peak learning rate of AdamW."""
    final_learning_rate_ratio: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Where the cosine over the rounds ends, as a fraction of ``learning_rate`` (ours)."""
    weight_decay: Annotated[float, Range(0, 1e6)] = 0.0
    """Decoupled weight decay."""
    lora_scaling: Factor = 2.0
    """alpha / rank, the same for every rank."""
    max_grad_norm: Factor | None = 1.0
    """Clipping by global norm; None (TOML: 0) = off."""
    num_warmup_steps: Count = 2
    """Linear warm-up at the start of each assignment, optimizer steps."""
    class_balance: Annotated[float, Range(0, 1)] = 0.0
    """From 0, examples as they come, to 1, all classes of a device as often."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """What the coordinator process needs; stored as ``config.toml`` in the run directory."""

    run_id: Annotated[str, Named()]
    """Unique name of the run."""
    fleet: Annotated[str, Named()]
    """Level of the MQTT topics that separates fleets on one broker."""
    broker_url: str
    """``mqtt://host:port`` or ``mqtts://user@host:8883``; a password comes from ``FEDSPINE_BROKER_PASSWORD``."""
    artifact_url: Annotated[str, Words(1_900)]
    """Base URL under which ``artifacts/`` is served, with a slash at the end."""
    artifact_digest: str
    """Digest of the artifact to train."""
    num_devices: Positive
    """Devices that the first round waits for (at most ``registration_timeout_s``); later ones: see ``rejoin_s``."""
    training: TrainingConfig
    arms: tuple[Arm, ...]
    """Arms that the scheduler may play; for one that plays between them, the corners of what it may play."""
    pruning: PruningConfig = dataclasses.field(default_factory=PruningConfig)
    sparsity: float | None = None
    """Pruning ratio that will be deployed: that of the deploy rounds and of the evaluation of the sub-model; None =
    neither."""
    keep: Literal["last", "best"] = "last"
    """The round whose adapter the run ends with: the last, or the best of the trained ones by the held-out figure."""
    eval_sparse: bool = False
    """Whether the sub-model is evaluated in every round; else only in the last."""
    emulation_file: str | None = None
    """Classes of emulated devices, relative to the run directory (docs/emulation.md); None = time is what it is."""
    scheduler: str = "uniform"
    """Who plays which arm: a name of docs/scheduler.md."""
    aggregation: str = "fedspine"
    """How adapters are combined: a name of docs/aggregation.md."""
    max_share: Annotated[float, Range(0.5, 1)] = 0.5
    """Largest share of a round's examples that one of three or more devices counts with; 1 = no ceiling."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random."""
    round_deadline_s: Annotated[float, Range(0, LONGEST_S, above=True)] = 600.0
    """Longest time of a round."""
    registration_timeout_s: Annotated[float, Range(0, LONGEST_S, above=True)] = 120.0
    """Longest wait for ``num_devices``; then the round starts with those that are there (one or more)."""
    rejoin_s: Annotated[float, Range(0, LONGEST_S)] = 5.0
    """How long a round waits for a device that went offline to come back; and how long a later round waits, before it
    starts, for as many devices as answered in the one before."""
    wire_dtype: WireDtype = "float32"
    """Type of adapters on the wire."""
    test_file: str | None = None
    """Held-out examples for the server's evaluation, relative to the run directory or absolute."""
    base_model: str | None = None
    """Directory (relative to the run directory, or absolute) or hub id of the model that the artifact was made from:
    named in ``adapters/peft``, where PEFT looks for it. None = not known."""
    num_evaluation_examples: Positive | None = 1000
    """Examples (seeded sample) evaluated after each round, the last one also on all. None = always all."""
    num_threads: Annotated[int, Range(1, 1024)] = 2
    """Threads of the server's evaluation."""
    broker_ca_file: str | None = None
    """Authority that signed the broker's certificate (PEM); None = the system's."""
    broker_cert_file: str | None = None
    """The coordinator's own certificate (PEM)."""
    broker_key_file: str | None = None
    """Its private key (PEM)."""
    max_devices: Annotated[int, Range(1, 1_000_000)] = 10_000
    """Devices that are known at a time; a new one takes the place of that which has been offline longest."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if not self.arms:
            msg = "no arms given: expected at least one RATIO:RANK, such as 0.25:8"
            raise ArmError(msg)
        for arm in self.arms:
            LORA_AXES.check(arm)
        if self.num_devices > self.max_devices:
            msg = f"num_devices is {self.num_devices}, but max_devices lets no more than {self.max_devices} register"
            raise ConfigError(msg)
        if self.pruning.deploy_rounds and self.sparsity is None:
            msg = f"deploy_rounds is {self.pruning.deploy_rounds}, but no sparsity is given to deploy"
            raise ConfigError(msg)

    @property
    def max_rank(self) -> int:
        """Rank of the global adapter: the largest of the arms."""
        return max(arm.rank for arm in self.arms)

    def learning_rate_at(self, round_number: int) -> float:
        """Learning rate of a round (1-based).

        A cosine from ``learning_rate`` to its final ratio over the rounds before the deploy rounds. They begin again
        at ``deploy_learning_rate_ratio`` of it, and end there too: what has just lost units must move to recover. A
        warm restart as in SGDR (arXiv 1608.03983); its place and height are ours.
        """
        peak, num_deploy = self.training.learning_rate, min(self.pruning.deploy_rounds, self.training.num_rounds)
        low = peak * self.training.final_learning_rate_ratio
        index, length = round_number - 1, self.training.num_rounds - num_deploy
        if index >= length:
            peak = max(low, peak * self.pruning.deploy_learning_rate_ratio)
            index, length = index - length, num_deploy
        progress = min(1.0, index / max(1, length - 1))
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))

    def to_toml(self) -> str:
        """TOML text that :meth:`from_toml` reads back to an equal configuration."""
        lines = [
            f"{field.name} = {toml_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name not in {"training", "pruning", "arms"} and getattr(self, field.name) is not None
        ]
        lines.append(f"arms = {toml_value(format_arms(self.arms))}")
        lines.append("\n[training]")
        lines += [
            f"{field.name} = {toml_value(0.0 if value is None else value)}"
            for field in dataclasses.fields(self.training)
            for value in [getattr(self.training, field.name)]
        ]
        lines.append("\n[pruning]")
        lines += [f"{name} = {toml_value(value)}" for name, value in dataclasses.asdict(self.pruning).items()]
        if self.num_evaluation_examples is None:
            lines.insert(0, "num_evaluation_examples = 0")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read a configuration.

        Raises:
            ConfigError: not TOML, an unknown or missing key, a wrong type, or a value out of range.
            ArmError: an arm outside its range.
        """
        try:
            data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            msg = f"configuration is no TOML: {error}"
            raise ConfigError(msg) from error
        training, arms = data.get("training"), data.get("arms")
        if isinstance(training, dict):
            if training.get("max_grad_norm") == 0:
                training["max_grad_norm"] = None
            data["training"] = from_table(training, TrainingConfig, "training")
        if data.get("num_evaluation_examples") == 0:
            data["num_evaluation_examples"] = None
        if isinstance(arms, str):
            data["arms"] = parse_arms(arms)
        if "pruning" in data:
            data["pruning"] = from_table(data["pruning"], PruningConfig, "pruning")
        return from_table(data, cls, "")

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


def check_sparsity(sparsity: float) -> None:
    """Refuse a pruning ratio that no sub-model may have.

    Raises:
        ArmError: it is outside the range.
    """
    if not 0.0 <= sparsity <= MAX_PRUNING_RATIO:
        msg = f"sparsity is {sparsity}, expected a pruning ratio of 0 to {MAX_PRUNING_RATIO}"
        raise ArmError(msg)


def toml_value(value: object) -> str:
    """A boolean, number or text as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    # JSON's escapes are TOML's, but for one control character that JSON leaves as it is.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
