"""The objects of a coordinator, opened from the run directory or made at the first start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from broker_server.config import CoordinatorConfig
from broker_server.emulation.clock import VirtualClock
from broker_server.emulation.context import scheduler_context
from broker_server.emulation.fleet import load_fleet
from broker_server.emulation.step_times import STEP_TIMES_FILE, read_step_times
from broker_server.errors import ConfigError, StoreError
from broker_server.methods.by_name import check_method, method_of, read_own_options
from broker_server.methods.method import AssignedWork, Method, MethodContext
from broker_server.methods.pruning.files import ImportanceFiles
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.pruning.schedule import is_deploy
from broker_server.methods.pruning.scores import Scores, check_scorable
from broker_server.methods.scheduler import GuardedScheduler, make_scheduler
from broker_server.naming import as_key
from broker_server.options import flat
from broker_server.serving.coordinator.assignments import Assigner
from broker_server.serving.evaluation.held_out import HeldOut
from broker_server.serving.storage.adapters import GlobalAdapters, peft_directory
from broker_server.serving.storage.peft_folder import PeftFolder, base_model
from broker_server.serving.storage.store import Store
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.run_directory import ARTIFACTS_FOLDER
from edge_runtime.formats.transforms import Transform, parse_transforms
from edge_runtime.wire.messages import AssignmentKey

INITIAL_ADAPTER, ARMS, AGGREGATION, TRANSFORMS = range(4)
"""Purposes of generators: with the run's seed and a round, each gives the same numbers after a restart."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The parts of a run that do not change between its beginning and its end."""

    config: CoordinatorConfig
    manifest: Manifest
    adapters: GlobalAdapters
    plans: Plans
    method: Method
    transforms: tuple[Transform, ...]
    """Transforms that are applied to each update before it is combined."""
    is_deploy: Callable[[int], bool]
    """Returns whether a round is a deploy round."""
    assigner: Assigner
    scheduler: GuardedScheduler
    importance_files: ImportanceFiles
    importance: Scores
    """Scores after the last finished round."""
    held_out: HeldOut | None
    """None: no held-out file was given, nothing is evaluated."""
    clock: VirtualClock | None = None
    """Clock of an emulated fleet; None: wall time."""

    @property
    def deadline_s(self) -> float:
        """Longest time of a round on the virtual clock, emulated; infinite without a deadline."""
        return math.inf if self.clock is None else self.clock.deadline_s

    def emulated_s(self, key: AssignmentKey, bytes_up: int) -> float | None:
        """Emulated seconds from an assignment to its update of ``bytes_up``; None if nothing is emulated."""
        work = self.assigner.work(key)
        if self.clock is None or work is None:
            return None
        return self.clock.completion_s(
            key, work.start_arm, work.segments, work.num_steps, bytes_down=work.bytes_down, bytes_up=bytes_up
        )

    def generator(self, purpose: int, round_number: int) -> np.random.Generator:
        """The generator for a purpose in a round."""
        return np.random.default_rng((self.config.seed, purpose, round_number))


def open_run(run_dir: Path, config: CoordinatorConfig, store: Store) -> RunContext:
    """Open artifact, importance, adapters and held-out examples; make those that are missing.

    Raises:
        EngineError: the artifact or the held-out file cannot be used.
        ConfigError: an unknown scheduler or aggregation, or a fleet's file that cannot be used.
        PlanError: the plan policy leaves no layer to prune.
        StoreError: a file of the run cannot be used.
        DiskFullError: there is no space.
    """
    artifact = Artifact.open(run_dir / ARTIFACTS_FOLDER / config.artifact_digest)
    if artifact.digest != config.artifact_digest:
        found = f"{artifact.directory} has digest {artifact.digest[:12]}..."
        msg = f"artifact {found}, but the run trains {config.artifact_digest[:12]}...: put that one back"
        raise StoreError(msg, digest=artifact.digest)
    manifest, clock = artifact.manifest, open_clock(run_dir, config)
    check_scorable(manifest, config.pruning)
    records, opened = store.load_round_records(), store.load_open_round()
    written = {record.round_number: record.files for record in records}
    base = base_model(run_dir, config.base_model)
    adapters = GlobalAdapters(
        run_dir,
        manifest,
        artifact.digest,
        rank=config.max_rank,
        lora_scaling=config.training.lora_scaling,
        peft_folder=PeftFolder(peft_directory(run_dir), manifest, artifact, base),
        digests={number: files.adapter for number, files in written.items() if files.adapter},
    )
    policy, by_round = config.pruning.policy.resolved(manifest.num_layers), config.pruning.importance == "lora"
    importance_files = ImportanceFiles(
        run_dir,
        artifact,
        policy,
        by_round=by_round,
        digests={number: files.importance for number, files in written.items() if files.importance},
    )
    importance = importance_files.open(records[-1].round_number if records else 0)
    works = {} if opened is None else store.load_works(config.run_id, opened.round_number)
    plans = Plans(manifest, importance, config.pruning.policy)
    deploys = _deploy_rounds(config, works)
    method = _make_method(config, artifact, plans, deploys)
    run = RunContext(
        config=config,
        manifest=manifest,
        adapters=adapters,
        plans=plans,
        method=method,
        transforms=parse_transforms(config.update_transforms),
        is_deploy=deploys,
        assigner=_open_assigner(config, method, store, works),
        scheduler=_open_scheduler(config, manifest, clock, store),
        importance_files=importance_files,
        importance=importance,
        held_out=_open_held_out(run_dir, config, artifact),
        clock=clock,
    )
    _provide_initial(run, artifact, is_begun=bool(records))
    return run


def _provide_initial(run: RunContext, artifact: Artifact, *, is_begun: bool) -> None:
    """Write the model before training, or check the one that the run was given."""
    if not run.adapters.exists(0):
        rng = run.generator(INITIAL_ADAPTER, 0)
        run.adapters.write(0, run.method.initial(artifact.initial(), rng))
    elif not is_begun:
        run.method.check_initial(run.adapters.read(0))


def _deploy_rounds(config: CoordinatorConfig, works: Mapping[AssignmentKey, AssignedWork]) -> Callable[[int], bool]:
    """Return a predicate of deploy rounds, the last rounds of the run.

    An open round keeps its kind, even if the number of rounds has changed.

    Args:
        config: settings of the run.
        works: assignments of the open round.
    """
    begun = {key.round_number: work.is_deploy for key, work in works.items() if work.is_deploy is not None}

    def is_last(round_number: int) -> bool:
        return is_deploy(config.pruning, round_number, config.training.num_rounds)

    return lambda round_number: begun.get(round_number, is_last(round_number))


def _make_method(config: CoordinatorConfig, artifact: Artifact, plans: Plans, deploys: Callable[[int], bool]) -> Method:
    manifest = artifact.manifest
    context = MethodContext(
        manifest=manifest,
        plans=plans,
        training=config.training,
        learning_rate_at=config.learning_rate_at,
        is_deploy=deploys,
        pruning=config.pruning,
        aggregation=config.aggregation,
        max_rank=config.max_rank,
        seed=config.seed,
        tables=config,
        own_options=config.method_options or read_own_options("", config.method),
        artifact=artifact,
        num_threads=config.num_threads,
    )
    try:
        check_method(config.method, flat(config), manifest)
    except ConfigError as error:
        raise as_key(error) from error
    method = method_of(config.method).of(context)
    if config.emulation_file is not None and not method.has_step_times:
        msg = f"method {config.method} cannot be emulated: step times are those of training; take `emulate = none`"
        raise ConfigError(msg)
    return method


def _open_assigner(
    config: CoordinatorConfig, method: Method, store: Store, works: Mapping[AssignmentKey, AssignedWork]
) -> Assigner:
    """Make an assigner with the assignments of the open round, or of all rounds if all their replies count."""
    return Assigner(method, config.wire_dtype, works=store.load_works(config.run_id) if method.asks_once else works)


def _open_scheduler(
    config: CoordinatorConfig, manifest: Manifest, clock: VirtualClock | None, store: Store
) -> GuardedScheduler:
    context = scheduler_context(config, manifest, clock)
    return GuardedScheduler(
        lambda: make_scheduler(config.scheduler, config.arms, context), store.load_scheduler(config.scheduler)
    )


def _open_held_out(run_dir: Path, config: CoordinatorConfig, artifact: Artifact) -> HeldOut | None:
    if config.test_file is None:
        return None
    return HeldOut(
        artifact,
        run_dir / config.test_file,
        max_length=config.training.max_length,
        num_examples=config.num_evaluation_examples,
        batch_size=config.training.batch_size,
        seed=config.seed,
    )


def open_clock(run_dir: Path, config: CoordinatorConfig) -> VirtualClock | None:
    """The virtual clock of a run whose fleet is emulated.

    Raises:
        ConfigError: the fleet's file or the step times beside it cannot be used.
    """
    if config.emulation_file is None:
        return None
    fleet = load_fleet(run_dir / config.emulation_file)
    return VirtualClock(fleet, read_step_times(run_dir / STEP_TIMES_FILE), config.seed)
