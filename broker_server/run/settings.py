"""Settings of ``fedspine run``: task defaults, under a TOML file, under the command line; kept as ``run.toml``."""

from __future__ import annotations

import dataclasses
import enum
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from broker_server.config import CoordinatorConfig, TrainingConfig, check_sparsity, toml_value
from broker_server.errors import ConfigError
from broker_server.pruning.config import PruningConfig
from broker_server.run.examples import LABEL, needed_fields
from broker_server.run.split import parse_split
from broker_server.services.ports import MAX_PORT
from edge_runtime.engine.examples import Fields
from edge_runtime.wire.arms import ArmError, parse_arms
from edge_runtime.wire.errors import MessageError
from edge_runtime.wire.manifest import BaseDtype, Task
from edge_runtime.wire.topics import check_name

EMULATION_FILE: Final = "fleet.toml"
"""Classes of a run's emulated devices, in the run directory."""


class Panel(enum.StrEnum):
    """Groups of options in ``fedspine run --help``."""

    MODEL = "Model and data"
    TRAINING = "Training"
    PRUNING = "Pruning"
    RESULT = "Result"
    PROCESSES = "Processes"
    EMULATION = "Emulated fleet"


HELP: Final = "help"
"""Key of a field's metadata: what the option means."""
PANEL: Final = "panel"
"""Key of a field's metadata: its :class:`Panel`."""


def option(panel: Panel, text: str, default: object = dataclasses.MISSING) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A setting that is an option of the command line too; without a default the task decides, unless the text says."""
    shown = f" (default: {default})" if default not in {dataclasses.MISSING, ""} else ""
    by_task = " (default: by task)" if default is dataclasses.MISSING and "(default:" not in text else ""
    return dataclasses.field(default=default, metadata={HELP: f"{text}{shown}{by_task}.", PANEL: panel})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Everything a whole run is asked for. Field names are the options' names, with underscores."""

    model: str = option(Panel.MODEL, "directory or hub id of a pretrained model (default: the small Llama shipped)", "")
    task: Task = option(  # noqa: RUF009 - a field
        Panel.MODEL, "text-classification or causal-lm; needed with --model (default: causal-lm)"
    )
    targets: str = option(
        Panel.MODEL, "linear layers that get LoRA factors, A,B,..., such as query,value (default: all)", ""
    )
    top_blocks: int = option(
        Panel.MODEL, "LoRA factors on so many blocks alone, counted from the head; 0 = all of them", 0
    )
    base: BaseDtype = option(  # noqa: RUF009 - a field
        Panel.MODEL,
        "type of frozen weights: stored (the checkpoint's), float32, float16, int8 or nf4 (4 bits)",
        "stored",
    )
    artifact: str = option(Panel.MODEL, "directory of an artifact exported earlier (default: export the model)", "")
    data: str = option(Panel.MODEL, "JSON lines to train on (default: the docstrings of Python's standard library)", "")
    test: str = option(Panel.MODEL, "held-out JSON lines (default: a random tenth of the data)", "")
    text_field: str = option(Panel.MODEL, "field that holds the text", "text")
    label_field: str = option(Panel.MODEL, "field that holds the class", LABEL)
    new_head: bool = option(
        Panel.MODEL, "a new classifier for the data's classes, even where the model has one", default=False
    )
    max_length: int = option(Panel.MODEL, "tokens of an example")
    split: str = option(Panel.MODEL, "iid, dirichlet:A or by-key[:FIELD]")
    devices: int = option(Panel.TRAINING, "number of devices")
    rounds: int = option(Panel.TRAINING, "number of rounds")
    local_steps: int = option(Panel.TRAINING, "optimizer steps of a device in a round")
    batch_size: int = option(Panel.TRAINING, "examples in a micro-batch")
    accumulation_steps: int = option(Panel.TRAINING, "micro-batches in an optimizer step", 1)
    arms: str = option(Panel.TRAINING, "pruning ratios and ranks, RATIO:RANK,..., such as 0.0:8,0.25:8,0.5:4")
    scheduler: str = option(Panel.TRAINING, "who gets which arm: fedspine, uniform, ... (docs/scheduler.md)", "uniform")
    aggregation: str = option(
        Panel.TRAINING,
        "fedspine, fedspine_holders, fedit, ... (docs/aggregation.md) (default: fedspine_holders, and fedspine where "
        "classes come as they are)",
    )
    learning_rate: float = option(Panel.TRAINING, "peak learning rate of AdamW")
    final_learning_rate_ratio: float = option(Panel.TRAINING, "the end of its cosine over the rounds, as a share", 0.1)
    weight_decay: float = option(Panel.TRAINING, "decoupled weight decay", 0.0)
    warmup_steps: int = option(Panel.TRAINING, "linear warm-up at the start of each assignment", 2)
    class_balance: float = option(
        Panel.TRAINING, "0: examples as they come, to 1: all classes of a device come as often", 0.0
    )
    lora_scaling: float = option(Panel.TRAINING, "alpha / rank, the same for every rank", 2.0)
    seed: int = option(Panel.TRAINING, "seed of everything random", 0)
    eval_examples: int = option(
        Panel.TRAINING, "held-out examples measured after each round, the last one also on all; 0 = always all"
    )
    round_deadline: float = option(Panel.TRAINING, "longest time of a round, seconds", 600.0)
    importance: Literal["magnitude", "lora"] = option(
        Panel.PRUNING,
        "what ranks heads and channels: magnitude of the weights, or lora gradients on devices",
        "magnitude",
    )
    importance_every_steps: int = option(Panel.PRUNING, "steps between two scores on a device, with lora", 5)
    importance_smoothing: float = option(Panel.PRUNING, "weight of the last round's global scores, in [0, 1)", 0.5)
    prune_scope: Literal["layer", "global"] = option(
        Panel.PRUNING, "layer: rank units in each layer; global: over all layers", "layer"
    )
    protect_first: int = option(Panel.PRUNING, "first layers that stay whole; -1 = a tenth of all", -1)
    protect_last: int = option(Panel.PRUNING, "last layers that stay whole; -1 = one, of five or more", -1)
    ramp_warmup_rounds: int = option(Panel.PRUNING, "rounds without pruning, before the ramp", 0)
    ramp_rounds: int = option(Panel.PRUNING, "rounds of the cubic ramp to an arm's ratio; 0 = at once", 0)
    recovery_steps: int = option(Panel.PRUNING, "least steps between two prunings inside an assignment", 20)
    deploy_rounds: int = option(Panel.PRUNING, "last rounds that train the plan of --sparsity on all devices", 0)
    deploy_learning_rate_ratio: float = option(
        Panel.PRUNING, "the first deploy round's share of the learning rate; cosine from there", 0.5
    )
    eval_sparse: bool = option(Panel.PRUNING, "measure the sub-model at --sparsity in every round", default=False)
    sparsity: float = option(
        Panel.RESULT,
        "pruning ratio of the compact model (default: the smallest above 0 of --arms, or 0 if none prunes)",
    )
    keep: Literal["last", "best"] = option(
        Panel.RESULT,
        "last or best: the round whose adapter is the result; best is chosen on the held-out examples, so its figure "
        "on them is a little too good",
        "last",
    )
    compact: bool = option(Panel.RESULT, "make and measure a compact model at the end", default=True)
    quantize: Literal["", "int8"] = option(Panel.RESULT, "int8, to quantise the compact model", "")
    broker: str = option(
        Panel.PROCESSES, "auto, mosquitto or amqtt (started here), or the URL of one that runs", "auto"
    )
    broker_port: int = option(Panel.PROCESSES, "port of a broker started here; 0 = any free one", 0)
    artifact_port: int = option(Panel.PROCESSES, "port of the artifact server; 0 = any free one", 0)
    fleet_name: str = option(
        Panel.PROCESSES, "fleet on the broker, which no other run there may use (default: one for this run alone)", ""
    )
    wire_dtype: Literal["float32", "float16"] = option(
        Panel.PROCESSES, "float32 or float16: type of adapters on the wire", "float32"
    )
    threads: int = option(Panel.PROCESSES, "threads of each device; 0 = cores / devices", 0)
    device_memory_mb: int = option(Panel.PROCESSES, "memory a device allows itself, MiB; 0 = its own choice", 0)
    fleet: str = option(
        Panel.EMULATION, "TOML file of device classes, or jetson for the built-in one; time is then emulated", ""
    )
    calibration: str = option(
        Panel.EMULATION,
        "JSON file of measured step times that several runs share (default: one in the run directory)",
        "",
    )

    def __post_init__(self) -> None:
        counts = ("devices", "rounds", "local_steps", "batch_size", "accumulation_steps", "max_length")
        for name in counts:
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}, expected 1 or more"
                raise ConfigError(msg)
        for name in (
            "top_blocks",
            "eval_examples",
            "threads",
            "seed",
            "device_memory_mb",
            "broker_port",
            "artifact_port",
        ):
            if getattr(self, name) < 0:
                msg = f"{name} is {getattr(self, name)}, expected 0 or more"
                raise ConfigError(msg)
        for name in ("broker_port", "artifact_port"):
            if getattr(self, name) > MAX_PORT:
                msg = f"{name} is {getattr(self, name)}, expected at most {MAX_PORT}"
                raise ConfigError(msg)
        if self.broker not in EMBEDDED_BROKERS and "://" not in self.broker:
            msg = f"broker {self.broker!r} is not known: expected auto, mosquitto, amqtt, or a URL such as mqtt://host:1883"
            raise ConfigError(msg)
        self._check_combinations()
        check_sparsity(self.sparsity)
        parse_split(self.split)
        self.coordinator_config(run_id="check", broker_url="", artifact_url="http://localhost/", artifact_digest="")

    def _check_combinations(self) -> None:
        for name in ("class_balance", "new_head"):
            if getattr(self, name) and self.task != "text-classification":
                msg = f"{name} is for text-classification, the task is {self.task}: leave it out"
                raise ConfigError(msg)
        if self.new_head and self.artifact:
            msg = "new_head is for an export, and the artifact that is given was exported before: leave one of them out"
            raise ConfigError(msg)

    @property
    def fields(self) -> Fields:
        """Where text, labels and what the split goes by are in the user's files."""
        return needed_fields(self.task, parse_split(self.split), self.text_field, self.label_field)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Linear layers that get LoRA factors, whole modules or their last parts; none for all."""
        return tuple(name.strip() for name in self.targets.split(",")) if self.targets else ()

    @property
    def device_ids(self) -> tuple[str, ...]:
        """Names of the devices: ``device-1`` to ``device-N``."""
        return tuple(check_name(f"device-{n}", "device id") for n in range(1, self.devices + 1))

    def fleet_of(self, run_id: str) -> str:
        """Fleet on the broker: the one that was given, else one that no other run has.

        Raises:
            ConfigError: it is no name of a fleet.
        """
        try:
            return check_name(self.fleet_name or run_id, "--fleet-name")
        except MessageError as error:
            raise ConfigError(str(error)) from error

    def coordinator_config(
        self,
        *,
        run_id: str,
        broker_url: str,
        artifact_url: str,
        artifact_digest: str,
        base_model: str | None = None,
        num_threads: int = 1,
    ) -> CoordinatorConfig:
        """What the coordinator process is told; the fleet is :meth:`fleet_of`.

        Raises:
            ConfigError: a value out of range.
            ArmError: an arm outside its range.
        """
        training = TrainingConfig(
            num_rounds=self.rounds,
            num_local_steps=self.local_steps,
            batch_size=self.batch_size,
            num_accumulation_steps=self.accumulation_steps,
            max_length=self.max_length,
            learning_rate=self.learning_rate,
            final_learning_rate_ratio=self.final_learning_rate_ratio,
            weight_decay=self.weight_decay,
            num_warmup_steps=self.warmup_steps,
            class_balance=self.class_balance,
            lora_scaling=self.lora_scaling,
        )
        return CoordinatorConfig(
            run_id=run_id,
            fleet=self.fleet_of(run_id),
            broker_url=broker_url,
            artifact_url=artifact_url,
            artifact_digest=artifact_digest,
            num_devices=self.devices,
            training=training,
            arms=parse_arms(self.arms),
            pruning=self.pruning_config(),
            sparsity=self.sparsity,
            keep=self.keep,
            eval_sparse=self.eval_sparse,
            emulation_file=EMULATION_FILE if self.fleet else None,
            scheduler=self.scheduler,
            aggregation=self.aggregation,
            seed=self.seed,
            round_deadline_s=self.round_deadline,
            wire_dtype=self.wire_dtype,
            test_file="data/test.jsonl",
            base_model=base_model,
            num_evaluation_examples=self.eval_examples or None,
            num_threads=num_threads,
        )

    def pruning_config(self) -> PruningConfig:
        """How the coordinator prunes.

        Raises:
            ConfigError: a value out of range.
        """
        return PruningConfig(
            importance=self.importance,
            importance_every_steps=self.importance_every_steps,
            importance_smoothing=self.importance_smoothing,
            scope=self.prune_scope,
            protect_first=self.protect_first,
            protect_last=self.protect_last,
            warmup_rounds=self.ramp_warmup_rounds,
            ramp_rounds=self.ramp_rounds,
            recovery_steps=self.recovery_steps,
            deploy_rounds=self.deploy_rounds,
            deploy_learning_rate_ratio=self.deploy_learning_rate_ratio,
        )

    def to_toml(self) -> str:
        """TOML text that :func:`resolve` reads back to equal settings."""
        return "".join(f"{key} = {toml_value(value)}\n" for key, value in dataclasses.asdict(self).items())


EMBEDDED_BROKERS: Final = frozenset({"auto", "mosquitto", "amqtt"})

TASK_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "text-classification": {
        "devices": 4,
        "rounds": 10,
        "local_steps": 10,
        "batch_size": 16,
        "max_length": 64,
        "split": "iid",
        "arms": "0.0:8,0.25:8",
        "learning_rate": 2e-3,
        "eval_examples": 500,
    },
    "causal-lm": {
        "devices": 4,
        "rounds": 4,
        "local_steps": 20,
        "batch_size": 8,
        "max_length": 128,
        "split": "iid",
        "arms": "0.0:8,0.25:8",
        "learning_rate": 3e-3,
        "eval_examples": 96,
    },
}
"""What a task takes where nothing is said; chosen by experiment (docs/run.md)."""


def resolve(options: Mapping[str, object], config: Path | None = None) -> RunSettings:
    """Settings from the task's defaults, under those of a TOML file, under the given options.

    Args:
        options: field names to values; None = not given.
        config: TOML file with field names as keys.

    Raises:
        ConfigError: the file cannot be read, an unknown key, a wrong type, or a value out of range.
        ArmError: an arm outside its range.
    """
    given = {} if config is None else _read_toml(config)
    given |= {key: value for key, value in options.items() if value is not None}
    if unknown := sorted(set(given) - {field.name for field in dataclasses.fields(RunSettings)}):
        msg = (
            f"setting {unknown[0]!r} is not known; known: {', '.join(f.name for f in dataclasses.fields(RunSettings))}"
        )
        raise ConfigError(msg)
    defaults = _defaults(given)
    try:
        return msgspec.convert(defaults | given, RunSettings)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError | ArmError):
            raise error.__cause__ from None
        msg = f"setting has a wrong value: {error}"
        raise ConfigError(msg) from error


def _defaults(given: Mapping[str, object]) -> dict[str, object]:
    task = given.get("task", "" if given.get("model") else "causal-lm")
    if task not in TASK_DEFAULTS:
        got = f"task {task!r} is not known" if task else "a model needs its task"
        msg = f"{got}: give --task {' or --task '.join(sorted(TASK_DEFAULTS))}"
        raise ConfigError(msg)
    for need in ("model", "data"):
        if task == "text-classification" and not given.get(need):
            msg = f"text-classification needs --{need}: what ships with the package is for causal-lm"
            raise ConfigError(msg)
    split = {} if given.get("data") else {"split": "by-key"}
    may_be_skewed = task == "text-classification" and not given.get("class_balance")
    aggregation = "fedspine" if may_be_skewed else "fedspine_holders"  # docs/aggregation.md
    defaults = {**TASK_DEFAULTS[str(task)], **split, "aggregation": aggregation, "task": task}
    return {**defaults, "sparsity": _trained_sparsity(given.get("arms", defaults["arms"]))}


def _trained_sparsity(arms: object) -> float:
    """The smallest ratio above 0 that devices train: a model that was never trained pruned loses much when cut."""
    try:
        ratios = [arm.pruning_ratio for arm in parse_arms(str(arms))]
    except ArmError:
        return 0.0  # the settings refuse these arms in their own words
    return min((ratio for ratio in ratios if ratio > 0), default=0.0)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"configuration {path} cannot be read: {error}"
        raise ConfigError(msg) from error
