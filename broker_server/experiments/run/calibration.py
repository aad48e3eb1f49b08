"""Calibration: how long an optimizer step takes here, on one thread, at some arms; with the code that devices run."""

from __future__ import annotations

import datetime as dt
import itertools
import platform
import statistics
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from broker_server.emulation.step_times import GridAxis, StepTimes, provide
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Batch, batches
from edge_runtime.engine.trainer import Trainer, TrainingRun
from edge_runtime.formats.adapter import initial, restrict
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.plan import Plan, uniform_num_kept
from edge_runtime.wire.arms import PRUNING_RATIO, RANK
from edge_runtime.wire.work import HyperParameters

RATIOS: Final = (0.0, 0.25, 0.5, 0.75, 0.9375)
RANKS: Final = (2, 8, 32)
NUM_PASSES: Final = 3
NUM_TIMED: Final = 2
"""Steps of each point in each pass, on the same batches; points take turns, so that a busy moment falls on all."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The input of an optimizer step."""

    batch_size: int
    num_accumulation_steps: int
    max_length: int
    source: str
    """Name of the data: its examples decide how long batches are."""


def calibrated(path: Path, artifact_dir: Path, data: Path, workload: Workload) -> StepTimes:
    """Step times of an artifact and a workload, from a file or measured into it.

    Args:
        path: see :func:`broker_server.emulation.step_times.provide`.
        artifact_dir: the artifact.
        data: examples to step on, JSON lines.
        workload: the rest.

    Raises:
        ConfigError: the file holds something else.
        EngineError: the artifact or the examples cannot be used.
        DiskFullError: there is no space.
    """
    artifact = Artifact.open(artifact_dir, verify=False)
    manifest = artifact.manifest
    shape = msgspec.json.encode(
        [manifest.model_name, manifest.task, manifest.tensors, manifest.targets, manifest.dense, workload]
    )
    return provide(path, f"{manifest.model_name}-{digest_of(shape)[:16]}", lambda: measure(artifact, data, workload))


def measure(artifact: Artifact, data: Path, workload: Workload) -> StepTimes:
    """Time steps at every point of the grid.

    Raises:
        DataEmptyError: there is no example.
        EngineError: see :func:`calibrated`.
    """
    dataset = load_examples(data, artifact, workload.max_length)
    trainer = Trainer(artifact, num_threads=1)
    draws = batches(dataset, workload.batch_size, np.random.default_rng(0))
    times_s: dict[tuple[float, int], list[float]] = {point: [] for point in itertools.product(RATIOS, RANKS)}
    for _ in range(NUM_PASSES):
        steps = [list(itertools.islice(draws, workload.num_accumulation_steps)) for _ in range(1 + NUM_TIMED)]
        for (ratio, rank), known_s in times_s.items():
            run = _start(trainer, ratio, rank, workload)
            known_s.extend([_time(run, step) for step in steps][1:])  # without the first step, which allocates memory
    return StepTimes(
        grid=(GridAxis(name=PRUNING_RATIO.name, values=RATIOS), GridAxis(name=RANK.name, values=RANKS)),
        step_s=tuple(statistics.median(known_s) for known_s in times_s.values()),
        machine=f"{platform.machine()} {platform.processor()}".strip(),
        measured_at=dt.datetime.now(dt.UTC).timestamp(),
    )


def _start(trainer: Trainer, ratio: float, rank: int, workload: Workload) -> TrainingRun:
    manifest = trainer.artifact.manifest
    kept = {(spec.layer, spec.group): np.arange(uniform_num_kept(spec, ratio)) for spec in manifest.groups}
    plan = Plan.from_kept(manifest, kept)
    full = initial(manifest, trainer.artifact.initial(), rank, np.random.default_rng(0))
    return trainer.start(plan, rank, restrict(manifest, full, plan, rank), _hyper_parameters(workload))


def _hyper_parameters(workload: Workload) -> HyperParameters:
    return HyperParameters(
        learning_rate=1e-5,
        weight_decay=0.0,
        lora_scaling=1.0,
        max_grad_norm=1.0,
        num_warmup_steps=0,
        num_local_steps=1 + NUM_TIMED,
        batch_size=workload.batch_size,
        num_accumulation_steps=workload.num_accumulation_steps,
        max_length=workload.max_length,
        seed=0,
    )


def _time(run: TrainingRun, micro_batches: list[Batch]) -> float:
    """Seconds of the processor, which on one thread are those of an idle machine, also where others work on it too."""
    began = time.process_time()
    run.step(micro_batches)
    return time.process_time() - began
