"""``fedspine run``: the steps of the whole job, in order; each is skipped where it is done already."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from broker_server.errors import ChildFailedError
from broker_server.experiments.run import layout, preparation
from broker_server.experiments.run.display import Display
from broker_server.experiments.run.emulate import read_fleet, settle_fleet
from broker_server.experiments.run.examples import DataSet
from broker_server.experiments.run.finishing import measure_compact, report_job, shown_settings
from broker_server.experiments.run.layout import JobState, RunDirectory
from broker_server.experiments.run.processes import (
    NUM_HOLDOUT,
    Place,
    check_broker,
    compact_command,
    export_command,
    num_cores,
    start_fleet,
    start_servers,
    take_password,
)
from broker_server.experiments.run.resume import COMPACT, MEASURE, begun, finished_rounds, reopened
from broker_server.experiments.run.reuse import adopt_artifact
from broker_server.experiments.run.settings import EMBEDDED_BROKERS, RunSettings
from broker_server.experiments.run.starting import read_adapter, start_from
from broker_server.experiments.run.supervisor import Child, Supervisor
from broker_server.experiments.run.training import watch
from broker_server.experiments.run.view import RunView
from broker_server.serving.callbacks import Callback, CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.report.build import TRAINING_STEP
from broker_server.serving.report.quality import plural
from broker_server.serving.report.schema import Report
from broker_server.serving.storage.events import EventReader
from broker_server.serving.storage.store import Store
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.manifest import decode_manifest, digest_of
from edge_runtime.formats.names import MANIFEST_FILE
from edge_runtime.link.address import password_shows
from edge_runtime.system.files import write_atomically

PREPARE: Final = "prepare"
CALIBRATE: Final = "calibrate"

NOTE: Final = "fedspine: note: "
"""Begins a line of an export's log that a person should see."""


def start_run(
    settings: RunSettings, root: Path, display: Display[RunView], callbacks: Sequence[Callback] = ()
) -> Report:
    """Run the whole job in a new directory.

    Args:
        settings: of the run.
        root: run directory.
        display: shows how it goes.
        callbacks: told of the rounds, beside those that the settings name.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    prepare_run(settings, root, display)
    return resume_run(root, display, callbacks=callbacks)


def prepare_run(settings: RunSettings, root: Path, display: Display[RunView]) -> None:
    """Check everything, then export the model and split the data into a new run directory.

    Raises:
        FedSpineError: see docs/exit-codes.md; nothing is left behind.
    """
    layout.check_free(root)
    make_callbacks(settings.callbacks)  # an invalid callback is an error before any other work
    preparation.check_settings(settings)
    shown, settings = settings, take_password(settings, os.environ)
    if settings != shown:
        display.step(f"warning: {password_shows('--broker')}")
    if settings.broker not in EMBEDDED_BROKERS:
        check_broker(settings.broker, settings.fleet_name)
    with layout.created(root) as directory:
        write_atomically(directory.settings_file, settings.to_toml().encode(), is_private=True)
        directory.save_state(_new_state())
        with (
            _open(directory, display, {}, None) as job,
            _explained(lambda error: "" if error.is_specific else _where(error)),
        ):
            job.prepare()


def resume_run(
    root: Path,
    display: Display[RunView],
    changes: Mapping[str, object] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Report:
    """Go on with a run, from wherever it stands.

    Args:
        root: run directory.
        display: shows how it goes.
        changes: settings that are to be others from now on; see
            :data:`broker_server.experiments.run.resume.CHANGEABLE`.
        callbacks: told of the rounds, beside those that the settings name.

    Raises:
        FedSpineError: see docs/exit-codes.md; finished steps stay finished.
    """
    hint = f"; go on with `fedspine run --resume --out {root}`"
    opened = _open(RunDirectory(root), display, changes or {}, callbacks)
    with opened as job, _explained(lambda error: _where(error) + hint):
        job.prepare()
        job.train()
        return job.conclude()


@contextlib.contextmanager
def _open(
    directory: RunDirectory,
    display: Display[RunView],
    changes: Mapping[str, object],
    callbacks: Sequence[Callback] | None,
) -> Iterator[Job]:
    """Hold a run and whatever processes it starts; ``callbacks`` None: nobody is told, no round is played."""
    directory.load_state()  # refuses a directory without a run before it writes to it
    with layout.held(directory):
        settings, state = reopened(directory, changes)
        told = () if callbacks is None else (*make_callbacks(settings.callbacks), *callbacks)
        worker = CallbackWorker(told, lambda text: display.step(f"warning: {text}"))
        with worker, Supervisor(directory.logs) as supervisor:
            yield Job(settings, directory, supervisor, display, state, worker)


@contextlib.contextmanager
def _explained(explanation: Callable[[ChildFailedError], str]) -> Iterator[None]:
    """Add advice for the user to the error of a process."""
    try:
        yield
    except ChildFailedError as error:
        msg = f"{error}{explanation(error)}"
        raise ChildFailedError(msg, error.child_exit_code, error.log) from error


def _where(error: ChildFailedError) -> str:
    return f" (log: {error.log})"


def _new_state() -> JobState:
    return JobState(run_id=f"run-{secrets.token_hex(6)}", created_at=datetime.now(UTC).timestamp())


class Job:
    """One process's work on a run.

    Attributes:
        state: how far the job came.
    """

    def __init__(
        self,
        settings: RunSettings,
        directory: RunDirectory,
        supervisor: Supervisor,
        display: Display[RunView],
        state: JobState,
        callbacks: CallbackWorker,
    ) -> None:
        self.state = state
        self._callbacks = callbacks
        self._settings = settings
        self._directory = directory
        self._supervisor = supervisor
        self._display = display
        self._view = RunView(settings.task, settings.device_ids, settings.training.num_rounds, settings.axes)

    def prepare(self) -> None:
        """Export the model and split the data, side by side where one does not need the other."""
        if PREPARE in self.state.done:
            return
        with self._step(PREPARE):
            shutil.rmtree(self._directory.artifacts, ignore_errors=True)
            needs_labels = self._settings.task == "text-classification"
            export = None if needs_labels else self._provide_artifact(())
            self._display.step("reading the data")
            data = preparation.load(self._settings)
            export = self._provide_artifact(data.labels) if needs_labels else export
            if preparation.may_be_indices(data.labels):  # only the model knows which classes the numbers mean
                self._finish_export(export)
                export = None
                data = preparation.named_classes(data, decode_manifest(self._manifest_bytes()).labels)
            preparation.write_split(self._settings, data, self._directory)
            for line in data_lines(data, self._settings.num_devices):
                self._display.step(line)
            self._finish_export(export)
            preparation.check_model(self._settings, decode_manifest(self._manifest_bytes()))
            self._name_artifact()
            if self._settings.adapter:
                self._start_from(Path(self._settings.adapter))

    def train(self) -> None:
        """All rounds that are left, with servers and devices as processes of their own."""
        settings = self._settings
        info = RunInfo(
            run_id=self.state.run_id,
            directory=self._directory.root,
            task=settings.task,
            settings=shown_settings(settings),
            axes=settings.axes,
        )
        self._callbacks.run_started(info)
        if TRAINING_STEP in self.state.done:
            rounds = plural(self._settings.training.num_rounds, "round")
            self._display.step(f"all {rounds} are done; --rounds N trains more")
            return
        self._save(begun(self._settings, self.state))
        if self._settings.is_emulated and CALIBRATE not in self.state.done:
            with self._step(CALIBRATE):
                self._display.step(
                    "the devices' speed is emulated: measuring the step times that no run has measured yet"
                )
                settle_fleet(self._settings, self._directory, self.state.artifact_digest or "")
        with self._step(TRAINING_STEP):
            self._play_rounds()

    def conclude(self) -> Report:
        """Compact model and its figures, where wanted, and the report."""
        if self._settings.compact:
            self._make_compact()
        report = report_job(self._settings, self._directory, self.state)
        self._callbacks.run_finished(report)
        return report

    # ---- parts of the steps ------------------------------------------------------------------------------------------

    def _make_compact(self) -> None:
        if COMPACT not in self.state.done:
            with self._step(COMPACT):
                self._display.step(f"making the compact model at sparsity {self._settings.sparsity}")
                shutil.rmtree(self._directory.compact, ignore_errors=True)
                command = compact_command(self._settings, self._directory, self._kept_round())
                self._supervisor.finish(self._supervisor.start("compact", command))
        if MEASURE not in self.state.done:
            with self._step(MEASURE):
                self._display.step("measuring the compact model")
                measure_compact(self._settings, self._directory, num_cores())

    def _kept_round(self) -> int | None:
        """The round that is kept in place of the last one; None = the last one."""
        with contextlib.closing(Store.open(self._directory.root)) as store:
            kept = store.load_round_records()[-1].kept
        return None if kept is None else kept.round_number

    def _play_rounds(self) -> None:
        servers, broker_url, artifacts_url = start_servers(self._supervisor, self._settings, self._directory)
        config = self._settings.coordinator_config(
            run_id=self.state.run_id,
            broker_url=broker_url,
            artifact_url=artifacts_url,
            artifact_digest=self.state.artifact_digest or "",
            base_model=preparation.base_model(self._settings),
            num_threads=num_cores(),
        )
        write_atomically(self._directory.config_file, config.to_toml().encode(), is_private=True)
        emulated = read_fleet(self._settings, self._directory)
        self._view.classes = {} if emulated is None else emulated.members
        events = EventReader(self._directory.events_file)
        self._view.go_on(events.new_events(), finished_rounds(self._directory.root))
        self._display.step(f"training begins on {plural(self._settings.num_devices, 'device')}{self._deployed()}")
        place = Place(broker_url=broker_url, fleet=config.fleet)
        fleet = start_fleet(self._supervisor, self._settings, self._directory, servers, place)
        watch(fleet, events, self._view, self._display, self._callbacks.happened)
        self._supervisor.stop([*fleet.devices.values(), *servers])

    def _deployed(self) -> str:
        """Describe the deploy rounds; empty if there are none."""
        settings = self._settings
        num_deploy, num_rounds = settings.pruning.deploy_rounds, settings.training.num_rounds
        if not num_deploy:
            return ""
        rounds = "the last" if num_deploy == 1 else f"the last {num_deploy}"
        return f"; {rounds} of {plural(num_rounds, 'round')} at sparsity {settings.sparsity}, that of the compact model"

    def _provide_artifact(self, labels: tuple[str, ...]) -> Child | None:
        """Start the export of the model, or take the artifact that was exported earlier (then None)."""
        self._directory.artifacts.mkdir(exist_ok=True)
        if self._settings.artifact:
            adopt_artifact(Path(self._settings.artifact), labels, self._exported)
            return None
        self._display.step(f"exporting {preparation.model_name(self._settings)}")
        source = preparation.model_source(self._settings.model)
        command = export_command(self._settings, source, labels, self._exported)
        return self._supervisor.start("export", command)

    def _finish_export(self, export: Child | None) -> None:
        """Wait for an export that is under way, and show its notes on the model."""
        if export is None:
            return
        self._supervisor.finish(export)
        for line in export.log.read_text(encoding="utf-8", errors="replace").splitlines():
            _, is_note, note = line.partition(NOTE)
            if is_note:
                self._display.step(f"note: {note}")

    def _manifest_bytes(self) -> bytes:
        return (self._exported / MANIFEST_FILE).read_bytes()

    @property
    def _exported(self) -> Path:
        return self._directory.artifacts / ".new"

    def _start_from(self, path: Path) -> None:
        """Make an adapter that was trained before the one of round 0."""
        given, artifact = self._settings, Artifact.open(self._directory.artifacts / (self.state.artifact_digest or ""))
        adapter, root = read_adapter(path), self._directory.root
        for note in start_from(adapter, artifact, root, given.max_rank, given.training.lora_scaling, given.seed):
            self._display.step(f"note: {note}")

    def _name_artifact(self) -> None:
        """Give the artifact its place by digest."""
        digest = digest_of(self._manifest_bytes())
        self._exported.rename(self._directory.artifacts / digest)
        self.state = msgspec.structs.replace(self.state, artifact_digest=digest)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Count the seconds of a step, however it ends, and remember when it is done."""
        begun = time.monotonic()
        done: tuple[str, ...] = ()
        try:
            yield
            done = (name,)
        finally:
            seconds = self.state.steps.get(name, 0.0) + time.monotonic() - begun
            steps = {**self.state.steps, name: seconds}
            self._save(msgspec.structs.replace(self.state, steps=steps, done=self.state.done + done))

    def _save(self, state: JobState) -> None:
        self._directory.save_state(state)
        self.state = state


def data_lines(data: DataSet, num_devices: int) -> list[str]:
    """Describe the data, in lines that are shown before training."""
    labels = f", {len(data.labels)} classes" if data.labels else ""
    devices = plural(num_devices, "device")
    held_back = f"up to {NUM_HOLDOUT} of its examples, at most a fifth"
    return [
        *(f"warning: {warning}" for warning in data.warnings),
        f"{len(data.train)} training and {len(data.test)} held-out examples{labels}, over {devices}",
        f"each device holds back {held_back}, to measure its own rounds, and trains on the rest",
    ]
