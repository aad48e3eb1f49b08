"""What a coordinator works with, opened from the run directory or made for it the first time."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from broker_server.adapters import GlobalAdapters
from broker_server.aggregation import Aggregated, Aggregation, make_aggregation
from broker_server.assignments import Assigner
from broker_server.config import CoordinatorConfig
from broker_server.errors import StoreError
from broker_server.evaluation import HeldOut
from broker_server.importance import Scores, magnitude_importance
from broker_server.scheduler import Scheduler, make_scheduler
from broker_server.store import Store
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.adapter import initial
from edge_runtime.wire.errors import PlanError, TensorError
from edge_runtime.wire.files import write_atomically
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.ranking import check_importance, from_tensors, to_tensors
from edge_runtime.wire.tensors import decode_tensors, encode_tensors

logger = logging.getLogger(__name__)

ARTIFACTS_FOLDER = "artifacts"
IMPORTANCE_FILE = "importance.safetensors"

INITIAL_ADAPTER, ARMS, AGGREGATION = range(3)
"""What a generator is for: with the run's seed and a round it gives the same numbers after a restart."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parts of a run that are the same from its beginning to its end."""

    config: CoordinatorConfig
    manifest: Manifest
    adapters: GlobalAdapters
    assigner: Assigner
    scheduler: Scheduler
    aggregation: Aggregation
    held_out: HeldOut | None
    """None: no held-out file was given, nothing is evaluated."""

    def generator(self, purpose: int, round_number: int) -> np.random.Generator:
        """The generator for a purpose in a round."""
        return np.random.default_rng((self.config.seed, purpose, round_number))


def open_run(run_dir: Path, config: CoordinatorConfig, store: Store) -> Run:
    """Open artifact, importance, adapters and held-out examples; make what is not there yet.

    Raises:
        EngineError: the artifact or the held-out file cannot be used.
        ConfigError: an unknown scheduler or aggregation.
        StoreError: a file of the run cannot be used.
        DiskFullError: there is no space.
    """
    scheduler = make_scheduler(config.scheduler, config.arms)
    learnt = store.load_scheduler(config.scheduler)
    if learnt is not None:
        scheduler.restore(learnt)
    aggregation = make_aggregation(config.aggregation)
    artifact = Artifact.open(run_dir / ARTIFACTS_FOLDER / config.artifact_digest)
    if artifact.digest != config.artifact_digest:
        msg = f"artifact {artifact.directory} has digest {artifact.digest[:12]}..., the run is of another: put it back"
        raise StoreError(msg, digest=artifact.digest)
    manifest, training = artifact.manifest, config.training
    held_out = None
    if config.test_file is not None:
        held_out = HeldOut(
            artifact,
            run_dir / config.test_file,
            max_length=training.max_length,
            num_examples=config.num_evaluation_examples,
            batch_size=training.batch_size,
            seed=config.seed,
        )
    adapters = GlobalAdapters(
        run_dir, manifest, artifact.digest, rank=config.max_rank, lora_scaling=training.lora_scaling
    )
    run = Run(
        config=config,
        manifest=manifest,
        adapters=adapters,
        assigner=Assigner(config, manifest, open_importance(run_dir, artifact)),
        scheduler=scheduler,
        aggregation=aggregation,
        held_out=held_out,
    )
    if not adapters.exists(0):
        rng = run.generator(INITIAL_ADAPTER, 0)
        adapters.write(0, Aggregated(adapter=initial(manifest, artifact.initial(), config.max_rank, rng)))
    return run


def open_importance(run_dir: Path, artifact: Artifact) -> Scores:
    """The scores that rank a run's units, from ``importance.safetensors``; computed and written the first time.

    Raises:
        StoreError: the file is damaged, or of another model.
        ArtifactCorruptedError: the base weights cannot be read.
    """
    path = run_dir / IMPORTANCE_FILE
    if not path.exists():
        scores = magnitude_importance(artifact.manifest, artifact.stored)
        write_atomically(path, encode_tensors(to_tensors(scores)))
        logger.info("ranked %d units by magnitude", sum(s.size for s in scores.values()))
        return scores
    try:
        scores = from_tensors(decode_tensors(path.read_bytes()))
        check_importance(artifact.manifest, scores)
    except (OSError, TensorError, PlanError) as error:
        msg = f"importance {path} cannot be used ({error}): plans would change; put the file back or start a new run"
        raise StoreError(msg) from error
    return scores
