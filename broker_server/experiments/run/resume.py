"""The rules of ``--resume``: settings that may change, settings that must not, and steps to repeat."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from broker_server.errors import ConfigError
from broker_server.experiments.run.layout import JobState, RunDirectory
from broker_server.experiments.run.processes import check_broker, take_password
from broker_server.experiments.run.resolve import kept_settings, said_of_file
from broker_server.experiments.run.settings import EMBEDDED_BROKERS, RunSettings
from broker_server.methods.by_name import completed
from broker_server.naming import option_name
from broker_server.options import Scalar, changed, flat, renamed
from broker_server.serving.report.build import TRAINING_STEP
from broker_server.serving.report.quality import plural
from broker_server.serving.storage.beginning import check_not_lost
from broker_server.serving.storage.records import RoundRecord
from broker_server.serving.storage.store import Store
from edge_runtime.formats.run_directory import STATE_FILE
from edge_runtime.system.files import write_atomically

COMPACT: Final = "compact"
MEASURE: Final = "measure"
"""Steps of a job, after training."""

DEPLOY: Final = "deploy_rounds"

CHANGEABLE: Final = (
    "rounds",
    DEPLOY,
    "round_deadline",
    "compact",
    "quantize",
    "broker",
    "broker_port",
    "artifact_port",
    "fleet_name",
    "threads",
    "device_memory_mb",
    "callbacks",
)
"""Settings that may change when a run is resumed: its length, its results, and where it runs."""


def check_changes(given: Collection[str]) -> None:
    """Refuse options that a run keeps from its beginning.

    Raises:
        ConfigError: names them, and those that may change.
    """
    if fixed := [option_name(name) for name in given if name not in CHANGEABLE]:
        may = ", ".join(option_name(name) for name in CHANGEABLE)
        msg = f"--resume goes on with the run as it began: leave out {', '.join(fixed)}; what may change is {may}"
        raise ConfigError(msg)


def reopened(directory: RunDirectory, changes: Mapping[str, object]) -> tuple[RunSettings, JobState]:
    """Settings and state of a resumed run, with the changes; written only if all of them are valid.

    Args:
        directory: of the run, which this process holds.
        changes: settings that were given with ``--resume``; others may have been changed in ``run.toml``.

    Raises:
        ConfigError: a setting that the run keeps was changed, or fewer rounds are wanted than are done.
        FedSpineError: the run's files cannot be used.
    """
    state, kept = directory.load_state(), kept_settings(directory.settings_file)
    settings = changed(kept, changes)
    if "broker" in changes:
        settings = take_password(settings, os.environ)
        if settings.broker not in EMBEDDED_BROKERS:
            check_broker(settings.broker, settings.fleet_name)
    _check_kept(settings, state, directory)
    if DEPLOY not in changes:
        settings = _deploying(settings, renamed(state.begun_with, RunSettings) or flat(kept))
    done = _still_done(settings, state, directory, changes)
    if settings != kept:
        write_atomically(directory.settings_file, settings.to_toml().encode(), is_private=True)
    after = msgspec.structs.replace(state, done=done)
    after = begun(settings, after) if after.begun_with else after
    if after != state:
        directory.save_state(after)
    return settings, after


def begun(settings: RunSettings, state: JobState) -> JobState:
    """The state of a run whose first round is about to begin, or that goes on: it knows the settings from then on."""
    return msgspec.structs.replace(state, begun_with=flat(settings))


def _check_kept(settings: RunSettings, state: JobState, directory: RunDirectory) -> None:
    now = flat(settings)
    for name, before in renamed(state.begun_with, RunSettings).items():
        if name not in CHANGEABLE and now.get(name) != before:
            msg = (
                f"{directory.settings_file}: {name} was {before!r} when the first round began and is {now.get(name)!r} "
                "now: put it back, or start a new run"
            )
            raise ConfigError(msg)


def _deploying(settings: RunSettings, before: Mapping[str, Scalar]) -> RunSettings:
    """The settings with deploy rounds at the end of all rounds that there are to be now.

    How many the method chose is chosen again; another number was given, and stays.

    Args:
        settings: with the rounds that there are to be.
        before: those that the run had so far, by name.
    """

    def choice(rounds: object) -> object:
        left_out = settings.unused | {DEPLOY}
        given = {name: value for name, value in flat(settings).items() if name not in left_out} | {"rounds": rounds}
        return completed(settings.method, given, rounds=settings.training.num_rounds).get(DEPLOY, 0)

    number, rounds = settings.pruning.deploy_rounds, settings.training.num_rounds
    is_chosen = settings.method and number == before.get(DEPLOY, number) == choice(before.get("rounds"))
    return changed(settings, {DEPLOY: choice(rounds)}) if is_chosen else settings


def _still_done(
    settings: RunSettings, state: JobState, directory: RunDirectory, changes: Collection[str]
) -> tuple[str, ...]:
    """Steps that need not be done again.

    Args:
        settings: those that count now.
        state: of the run so far.
        directory: of the run.
        changes: names of the settings that are from the command line.
    """
    records = finished_rounds(directory.root)
    num_done = records[-1].round_number if records else 0
    num_rounds = settings.training.num_rounds
    num_deploy = settings.pruning.deploy_rounds
    again: set[str] = set()
    with said_of_file(changes, directory.settings_file):
        if num_rounds < num_done:
            msg = (
                f"--rounds is {num_rounds}, but {num_done} are done: give more to go on, or make the model after "
                f"an earlier round with `fedspine compact {directory.root} --round N`"
            )
            raise ConfigError(msg)
        if num_rounds == num_done and num_deploy != state.begun_with.get(DEPLOY, num_deploy):
            msg = f"--deploy-rounds is {num_deploy}, but all {plural(num_done, 'round')} are done: give more --rounds"
            raise ConfigError(msg)
    if num_rounds > num_done:
        again = {TRAINING_STEP, COMPACT, MEASURE}
    elif any(getattr(settings, name) != state.begun_with.get(name) for name in ("compact", "quantize")):
        again = {COMPACT, MEASURE}
    return tuple(step for step in state.done if step not in again)


def finished_rounds(root: Path) -> list[RoundRecord]:
    """Records of a run's rounds so far.

    Raises:
        StoreError: they are lost, or cannot be read.
    """
    check_not_lost(root)
    if not (root / STATE_FILE).is_file():
        return []
    with contextlib.closing(Store.open(root)) as store:
        return store.load_round_records()
