"""Settings of ``fedspine run``, each declared once with its range; kept as ``run.toml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from broker_server.config import (
    LONGEST_S,
    CoordinatorConfig,
    Count,
    Factor,
    Positive,
    TrainingConfig,
    check_sparsity,
    toml_value,
)
from broker_server.errors import ConfigError
from broker_server.experiments.run.examples import LABEL, needed_fields
from broker_server.experiments.run.options import Panel, Port, Ratio, Share, option
from broker_server.experiments.run.split import parse_split
from broker_server.methods.aggregation import make_aggregation
from broker_server.methods.pruning.config import Layers, PruningConfig
from broker_server.methods.scheduler import scheduler_class
from broker_server.naming import option_name, said_of
from broker_server.ranges import MOST, Range, Words, check_fields
from edge_runtime.bounds import limits
from edge_runtime.engine.examples import Fields
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import BaseDtype, Task
from edge_runtime.link.address import BrokerAddress
from edge_runtime.wire.arms import parse_arms
from edge_runtime.wire.topics import check_name

EMULATION_FILE: Final = "fleet.toml"
"""Classes of a run's emulated devices, in the run directory."""

MOST_DEVICES: Final = 10_000
"""Devices that one machine may be asked to play."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Everything a whole run is asked for. Field names are the options' names, with underscores."""

    model: str = option(Panel.MODEL, "directory or hub id of a pretrained model (default: the small Llama shipped)", "")
    task: Task = option(Panel.MODEL, "text-classification or causal-lm; needed with --model (default: causal-lm)")
    targets: str = option(
        Panel.MODEL, "linear layers that get LoRA factors, A,B,..., such as query,value (default: all)", ""
    )
    top_blocks: Annotated[int, Range(0, limits.MAX_LAYERS)] = option(
        Panel.MODEL, "LoRA factors on so many blocks alone, counted from the head; 0 = all of them", 0
    )
    base: BaseDtype = option(
        Panel.MODEL,
        "type of frozen weights: stored (the checkpoint's), float32, float16, int8 or nf4 (4 bits)",
        "stored",
    )
    artifact: str = option(Panel.MODEL, "directory of an artifact exported earlier (default: export the model)", "")
    adapter: str = option(
        Panel.MODEL, "adapter to start from: a folder of PEFT, a run, or its adapters/round-NNNN.safetensors", ""
    )
    data: str = option(Panel.MODEL, "JSON lines to train on (default: the docstrings of Python's standard library)", "")
    test: str = option(Panel.MODEL, "held-out JSON lines (default: a random tenth of the data)", "")
    text_field: Annotated[str, Words()] = option(Panel.MODEL, "field that holds the text", "text")
    label_field: Annotated[str, Words()] = option(Panel.MODEL, "field that holds the class", LABEL)
    new_head: bool = option(
        Panel.MODEL, "a new classifier for the data's classes, even where the model has one", default=False
    )
    max_length: Annotated[int, Range(2, MOST)] = option(Panel.MODEL, "tokens of an example")
    split: str = option(Panel.MODEL, "iid, dirichlet:A or by-key[:FIELD]")
    devices: Annotated[int, Range(1, MOST_DEVICES)] = option(Panel.TRAINING, "number of devices")
    rounds: Positive = option(Panel.TRAINING, "number of rounds")
    local_steps: Positive = option(Panel.TRAINING, "optimizer steps of a device in a round")
    batch_size: Positive = option(Panel.TRAINING, "examples in a micro-batch")
    accumulation_steps: Positive = option(Panel.TRAINING, "micro-batches in an optimizer step", 1)
    arms: str = option(Panel.TRAINING, "pruning ratios and ranks, RATIO:RANK,..., such as 0.0:8,0.25:8,0.5:4")
    scheduler: str = option(Panel.TRAINING, "who gets which arm: fedspine, uniform, ... (docs/scheduler.md)", "uniform")
    aggregation: str = option(
        Panel.TRAINING,
        "fedspine, fedspine_holders, fedit, ... (docs/aggregation.md) (default: fedspine_holders, and fedspine where "
        "classes come as they are)",
    )
    learning_rate: Factor = option(Panel.TRAINING, "peak learning rate of AdamW")
    final_learning_rate_ratio: Ratio = option(Panel.TRAINING, "the end of its cosine over the rounds, as a share", 0.1)
    weight_decay: Annotated[float, Range(0, 1e6)] = option(Panel.TRAINING, "decoupled weight decay", 0.0)
    warmup_steps: Count = option(Panel.TRAINING, "linear warm-up at the start of each assignment", 2)
    class_balance: Share = option(
        Panel.TRAINING, "0: examples as they come, to 1: all classes of a device come as often", 0.0
    )
    lora_scaling: Factor = option(Panel.TRAINING, "alpha / rank, the same for every rank", 2.0)
    seed: Annotated[int, Range(0, 2**63 - 1)] = option(Panel.TRAINING, "seed of everything random", 0)
    eval_examples: Count = option(
        Panel.TRAINING, "held-out examples measured after each round, the last one also on all; 0 = always all"
    )
    round_deadline: Annotated[float, Range(0, LONGEST_S, above=True)] = option(
        Panel.TRAINING, "longest time of a round, seconds", 600.0
    )
    importance: Literal["magnitude", "lora"] = option(
        Panel.PRUNING,
        "what ranks heads and channels: magnitude of the weights, or lora gradients on devices",
        "magnitude",
    )
    importance_every_steps: Positive = option(Panel.PRUNING, "steps between two scores on a device, with lora", 5)
    importance_smoothing: Annotated[float, Range(0, 1, below=True)] = option(
        Panel.PRUNING, "weight of the last round's global scores, in [0, 1)", 0.5
    )
    prune_scope: Literal["layer", "global"] = option(
        Panel.PRUNING, "layer: rank units in each layer; global: over all layers", "layer"
    )
    protect_first: Layers = option(Panel.PRUNING, "first layers that stay whole; -1 = a tenth of all", -1)
    protect_last: Layers = option(Panel.PRUNING, "last layers that stay whole; -1 = one, of five or more", -1)
    ramp_warmup_rounds: Count = option(Panel.PRUNING, "rounds without pruning, before the ramp", 0)
    ramp_rounds: Count = option(Panel.PRUNING, "rounds of the cubic ramp to an arm's ratio; 0 = at once", 0)
    recovery_steps: Positive = option(Panel.PRUNING, "least steps between two prunings inside an assignment", 20)
    deploy_rounds: Count = option(Panel.PRUNING, "last rounds that train the plan of --sparsity on all devices", 0)
    deploy_learning_rate_ratio: Ratio = option(
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
    broker_port: Port = option(Panel.PROCESSES, "port of a broker started here; 0 = any free one", 0)
    artifact_port: Port = option(Panel.PROCESSES, "port of the artifact server; 0 = any free one", 0)
    fleet_name: str = option(
        Panel.PROCESSES, "fleet on the broker, which no other run there may use (default: one for this run alone)", ""
    )
    wire_dtype: Literal["float32", "float16"] = option(
        Panel.PROCESSES, "float32 or float16: type of adapters on the wire", "float32"
    )
    threads: Annotated[int, Range(0, 1024)] = option(Panel.PROCESSES, "threads of each device; 0 = cores / devices", 0)
    device_memory_mb: Annotated[int, Range(0, MOST)] = option(
        Panel.PROCESSES, "memory a device allows itself, MiB; 0 = its own choice", 0
    )
    fleet: str = option(
        Panel.EMULATION, "TOML file of device classes, or jetson for the built-in one; time is then emulated", ""
    )
    calibration: str = option(
        Panel.EMULATION,
        "JSON file of measured step times that several runs share (default: one in the run directory)",
        "",
    )

    def __post_init__(self) -> None:
        check_fields(self, option_name)
        if self.broker not in EMBEDDED_BROKERS:
            if "://" not in self.broker:
                known = "auto, mosquitto, amqtt, or a URL such as mqtt://host:1883"
                msg = f"--broker {self.broker!r} is not known: expected {known}"
                raise ConfigError(msg)
            with said_of("broker"):
                BrokerAddress.parse(self.broker)
        checks: dict[str, Callable[[Any], object]] = {
            "arms": parse_arms,
            "sparsity": check_sparsity,
            "split": parse_split,
            "scheduler": scheduler_class,
            "aggregation": make_aggregation,
        }
        for name, check in checks.items():
            with said_of(name):
                check(getattr(self, name))
        self._check_combinations()
        self.coordinator_config(run_id="check", broker_url="", artifact_url="http://localhost/", artifact_digest="")

    def _check_combinations(self) -> None:
        for name in ("class_balance", "new_head"):
            if getattr(self, name) and self.task != "text-classification":
                msg = f"{option_name(name)} is for text-classification, the task is {self.task}: leave it out"
                raise ConfigError(msg)
        if self.new_head and self.artifact:
            msg = "--new-head is for an export, and --artifact names one that is done: leave one of them out"
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
    def max_rank(self) -> int:
        """Rank of the global adapter."""
        return max(arm.rank for arm in parse_arms(self.arms))

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
            max_share=1.0,  # all devices are of this run, which dealt the examples itself
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
        """TOML text that :func:`broker_server.experiments.run.resolve.resolve` reads back to equal settings."""
        return "".join(f"{key} = {toml_value(value)}\n" for key, value in dataclasses.asdict(self).items())


EMBEDDED_BROKERS: Final = frozenset({"auto", "mosquitto", "amqtt"})
