"""Settings of a benchmark, checked before anything runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Final

import msgspec

from broker_server.errors import ConfigError
from broker_server.naming import option_name, said_of
from broker_server.ranges import Words, check_fields
from edge_runtime.benchmark.protocol import BenchmarkRequest
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Count, Positive
from edge_runtime.formats.manifest import BaseDtype, Task
from edge_runtime.wire.arms import LORA_AXES, ArmError
from edge_runtime.wire.work import Arm, HyperParameters

WEIGHT_DECAY: Final = 0.01
MAX_GRAD_NORM: Final = 1.0
NUM_WARMUP_STEPS: Final = 3
"""Steps of each process before those that are timed."""
LOSS_STEPS: Final = 50
"""Steps after which losses are compared."""
LOSS_TOLERANCE: Final = 1e-3
"""Largest difference between the losses of two engines that do the same work, nats."""
QUOTABLE_RUNS: Final = 5
"""Fewer runs are good for a look, not for a figure."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """All settings of a benchmark. The optimizer is the same for all: AdamW, clipped at 1."""

    model: Words
    """Directory or hub id of a pretrained model."""
    task: Task
    batch_size: Positive
    length: Annotated[int, msgspec.Meta(ge=2, le=limits.MOST)]
    """Tokens of every example."""
    arm: Arm
    targets: str
    """Linear layers with LoRA factors, ``A,B,...``; empty = all."""
    base: BaseDtype
    """Type of the frozen weights in the artifact; peers that know no artifact take the checkpoint's, as float32."""
    runs: Annotated[int, msgspec.Meta(ge=1, le=1_000)]
    """Processes of each contender."""
    steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Steps of each process that are timed."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=4_096)]
    against: tuple[str, ...]
    """Peers, see :data:`broker_server.benchmark.contenders.PEERS`."""
    num_labels: Annotated[int, msgspec.Meta(ge=2, le=limits.MOST)] | None
    """Classes, where the checkpoint has no classifier."""
    seed: Count
    ort_python: Words
    """Interpreter of the environment that scripts/setup-ort-training makes."""

    def __post_init__(self) -> None:
        """Refuse a value of a wrong type or out of range.

        Raises:
            ConfigError: names the first such field.
        """
        check_fields(self, option_name)

    def request(self, engine: str, arm: Arm, artifact: Path, ort_models: Path, run: int) -> BenchmarkRequest:
        """Return the request for a contender's process in a run (0-based).

        The first run goes on until losses are compared.
        """
        num_steps = NUM_WARMUP_STEPS + self.steps
        return BenchmarkRequest(
            engine=engine,
            artifact=str(artifact),
            model=self.model,
            ort_models=str(ort_models),
            arm=arm,
            num_threads=self.threads,
            num_warmup_steps=NUM_WARMUP_STEPS,
            num_timed_steps=self.steps,
            hyper_parameters=HyperParameters(
                learning_rate=1e-3,
                weight_decay=WEIGHT_DECAY,
                lora_scaling=2.0,
                max_grad_norm=MAX_GRAD_NORM,
                num_warmup_steps=0,
                num_local_steps=num_steps if run else max(num_steps, LOSS_STEPS + 1),
                batch_size=self.batch_size,
                num_accumulation_steps=1,
                max_length=self.length,
                seed=self.seed,
            ),
        )


def parse_arm(text: str) -> Arm:
    """One arm from ``RATIO:RANK``.

    Raises:
        ArmError: not one arm, or outside the range.
    """
    with said_of("arm"):
        arms = LORA_AXES.parse(text)
    if len(arms) != 1:
        msg = f"--arm {text!r} holds {len(arms)} arms, expected one: such as 0.25:8"
        raise ArmError(msg)
    return arms[0]


def check_json(path: Path) -> None:
    """Refuse a file that could not be written at the end.

    Raises:
        ConfigError: its folder does not exist, or something else is in its place.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a directory" if path.is_dir() else f"has no folder {path.absolute().parent}"
        msg = f"--json {path} {problem}: give a file in a folder that exists"
        raise ConfigError(msg)
