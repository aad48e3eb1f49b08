"""Settings of ``fedspine run``: those of the federation, and of the machine that plays it; kept as ``run.toml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec

from broker_server.config import CoordinatorConfig, FederationConfig, check_sparsity
from broker_server.errors import ConfigError
from broker_server.experiments.run.examples import LABEL, needed_fields
from broker_server.experiments.run.split import parse_split
from broker_server.methods.aggregation import make_aggregation
from broker_server.methods.by_name import METHODS
from broker_server.methods.scheduler import scheduler_class
from broker_server.naming import option_name, said_of
from broker_server.options import Panel, flat_toml, option
from broker_server.ranges import Words
from broker_server.serving.callbacks import check_callbacks
from broker_server.serving.services.ports import MAX_PORT
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count
from edge_runtime.engine.examples import Fields
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import BaseDtype, Task
from edge_runtime.formats.transforms import parse_transforms
from edge_runtime.link.address import BrokerAddress
from edge_runtime.wire.topics import check_name

EMULATION_FILE: Final = "fleet.toml"
"""Classes of a run's emulated devices, in the run directory."""

MOST_DEVICES: Final = 10_000
"""Devices that one machine may be asked to play."""

NOT_EMULATED: Final = ("none", "")
"""Values of ``--emulate`` that mean wall time; earlier releases wrote the empty one."""

Port = Annotated[int, msgspec.Meta(ge=0, le=MAX_PORT)]
"""0 = any free one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings(FederationConfig):
    """Everything a whole run is asked for."""

    model: str = option(
        Panel.MODEL, "directory or hub id of a pretrained model (default: the small Llama in the package)", ""
    )
    task: Task = option(
        Panel.MODEL, "text-classification or causal-lm; required with --model (default: causal-lm)", "causal-lm"
    )
    targets: str = option(Panel.MODEL, "linear layers that get LoRA factors, such as query,value (default: all)", "")
    top_blocks: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_LAYERS)] = option(
        Panel.MODEL, "number of blocks that get LoRA factors, counted from the head; 0 = all", 0
    )
    base: BaseDtype = option(
        Panel.MODEL,
        "type of the frozen weights: stored (as in the checkpoint), float32, float16, int8 or nf4 (4 bits)",
        "stored",
    )
    artifact: str = option(
        Panel.MODEL, "directory of an artifact that was exported earlier (default: export the model)", ""
    )
    adapter: str = option(
        Panel.MODEL,
        "adapter to start from: a folder in PEFT's format, a run directory, or its adapters/round-NNNN.safetensors",
        "",
    )
    data: str = option(
        Panel.MODEL, "file of JSON lines to train on (default: the docstrings of Python's standard library)", ""
    )
    test: str = option(Panel.MODEL, "file of held-out JSON lines (default: a random tenth of the data)", "")
    text_field: Words = option(Panel.MODEL, "field of a line that holds the text", "text")
    label_field: Words = option(Panel.MODEL, "field of a line that holds the class", LABEL)
    new_head: bool = option(
        Panel.MODEL, "make a new classifier for the classes of the data, even where the model has one", default=False
    )
    split: str = option(Panel.MODEL, "how examples are dealt to devices: iid, dirichlet:A or by-key[:FIELD]")
    compact: bool = option(Panel.RESULT, "make a compact model at the end, and measure it", default=True)
    quantize: Literal["", "int8"] = option(Panel.RESULT, "int8 quantises the compact model (default: none)", "")
    broker: str = option(
        Panel.PROCESSES, "broker to start here, auto, mosquitto or amqtt; or the URL of one that runs", "auto"
    )
    broker_port: Port = option(Panel.PROCESSES, "port of a broker that is started here; 0 = any free one", 0)
    artifact_port: Port = option(Panel.PROCESSES, "port of the artifact server; 0 = any free one", 0)
    fleet_name: str = option(
        Panel.PROCESSES, "name of the fleet on the broker; no other run there may use it (default: a new one)", ""
    )
    callbacks: str = option(
        Panel.RESULT,
        "callbacks that are told of each round: tensorboard, mlflow or module:Class, several with commas "
        "(docs/extending.md) (default: none)",
        "",
    )
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = option(
        Panel.PROCESSES, "threads of each device; 0 = number of cores / number of devices", 0
    )
    device_memory_mb: Count = option(Panel.PROCESSES, "memory limit of each device in MiB; 0 = the device chooses", 0)
    emulate: str = option(
        Panel.EMULATION,
        "classes of emulated devices: jetson (built in), a TOML file, or none. The speed and time of emulated devices "
        "are modelled; with none, they are measured on this machine (default: jetson)",
        NOT_EMULATED[0],
        formerly="fleet",
    )
    calibration: str = option(
        Panel.EMULATION,
        "JSON file of measured step times, which several runs can share (default: one in the run directory)",
        "",
    )

    def __post_init__(self) -> None:
        with said_of("sparsity"):
            check_sparsity(self.sparsity or 0.0)
        with said_of("update_transforms"):
            parse_transforms(self.update_transforms)
        FederationConfig.__post_init__(self)
        if self.broker not in EMBEDDED_BROKERS:
            if "://" not in self.broker:
                known = "auto, mosquitto, amqtt, or a URL such as mqtt://host:1883"
                msg = f"--broker {self.broker!r} is not known: expected {known}"
                raise ConfigError(msg)
            with said_of("broker"):
                BrokerAddress.parse(self.broker)
        checks: dict[str, Callable[[Any], object]] = {
            "split": parse_split,
            "callbacks": check_callbacks,
            "scheduler": scheduler_class,
            "aggregation": make_aggregation,
        }
        for name, check in checks.items():
            with said_of(name):
                check(getattr(self, name))
        self._check_combinations()
        self.coordinator_config(run_id="check", broker_url="", artifact_url="http://localhost/", artifact_digest="")

    def _check_combinations(self) -> None:
        for name, is_given in (("class_balance", self.training.class_balance), ("new_head", self.new_head)):
            if is_given and self.task != "text-classification":
                msg = f"{option_name(name)} is for text-classification, but the task is {self.task}: leave it out"
                raise ConfigError(msg)
        if self.num_devices > MOST_DEVICES:
            msg = f"--devices is {self.num_devices}, expected a whole number from 1 to {MOST_DEVICES}"
            raise ConfigError(msg)
        if self.method and self.is_emulated and not METHODS.find_or_import(self.method).method.has_step_times:
            msg = f"--emulate is {self.emulate}, but step times are those of first-order training: leave it out"
            raise ConfigError(msg)
        if self.new_head and self.artifact:
            msg = "--new-head needs an export, but --artifact names one that is done: leave one of them out"
            raise ConfigError(msg)

    @property
    def fields(self) -> Fields:
        """Return the fields of the user's files that hold the text, the label and the key of the split."""
        return needed_fields(self.task, parse_split(self.split), self.text_field, self.label_field)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Linear layers that get LoRA factors, whole modules or their last parts; none for all."""
        return tuple(name.strip() for name in self.targets.split(",")) if self.targets else ()

    @property
    def is_emulated(self) -> bool:
        """Return whether devices have the speed of emulated classes."""
        return self.emulate not in NOT_EMULATED

    @property
    def device_ids(self) -> tuple[str, ...]:
        """Names of the devices: ``device-1`` to ``device-N``."""
        return tuple(check_name(f"device-{n}", "device id") for n in range(1, self.num_devices + 1))

    def fleet_of(self, run_id: str) -> str:
        """Fleet on the broker: the one that was given, else one that no other run has.

        Raises:
            ConfigError: it is not a name of a fleet.
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
        """Return the settings of the coordinator process; the fleet is :meth:`fleet_of`.

        Raises:
            ConfigError: a value out of range.
            ArmError: an arm outside its range.
        """
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(FederationConfig)}
        return CoordinatorConfig(
            **shared,
            run_id=run_id,
            fleet=self.fleet_of(run_id),
            broker_url=broker_url,
            artifact_url=artifact_url,
            artifact_digest=artifact_digest,
            emulation_file=EMULATION_FILE if self.is_emulated else None,
            max_share=1.0,  # this run dealt the examples to its own devices, so it can trust their numbers
            test_file="data/test.jsonl",
            base_model=base_model,
            num_threads=num_threads,
        )

    def to_toml(self) -> str:
        """TOML text that :func:`broker_server.experiments.run.resolve.resolve` reads back to equal settings."""
        return flat_toml(self, self.unused)


EMBEDDED_BROKERS: Final = frozenset({"auto", "mosquitto", "amqtt"})
