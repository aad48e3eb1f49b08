"""The report of a run, made from its configuration and its store, so that runs on boards have one too."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from broker_server.config import CONFIG_FILE, CoordinatorConfig
from broker_server.emulation.fleet import Fleet, load_fleet
from broker_server.errors import RunFailedError
from broker_server.options import Scalar, flat
from broker_server.serving.report.build import RunSummary, build_report
from broker_server.serving.report.encoding import encode
from broker_server.serving.report.page import render_page
from broker_server.serving.report.schema import (
    REPORT_JSON,
    REPORT_PAGE,
    Compact,
    DataEntry,
    DeviceData,
    FleetClass,
    FleetDrift,
    FleetEntry,
    Report,
)
from broker_server.serving.storage.beginning import check_not_lost
from broker_server.serving.storage.events import EVENTS_FILE, EventReader
from broker_server.serving.storage.records import RoundRecord
from broker_server.serving.storage.store import Store
from edge_runtime.formats.manifest import Manifest, decode_manifest
from edge_runtime.formats.names import MANIFEST_FILE
from edge_runtime.formats.run_directory import STATE_FILE
from edge_runtime.link.address import BrokerAddress
from edge_runtime.system.files import write_atomically

COMPACT_RESULT: Final = "compact.json"
"""File with the measures of the compact model, if there is one."""


def report_run(run_dir: Path) -> Report:
    """Write ``report.json`` and ``report.html`` of a run in its current state, even while it goes on.

    Raises:
        ConfigError: ``config.toml`` cannot be used.
        StoreError: the state on disk cannot be used, or is lost.
        ManifestError: the artifact's description is damaged.
        RunFailedError: no round is finished, not even the evaluation before training.
        DiskFullError: there is no space.
    """
    config = CoordinatorConfig.load(run_dir / CONFIG_FILE)
    rounds = _rounds(run_dir)
    if not rounds:
        msg = f"{run_dir} has no finished round yet: nothing to report"
        raise RunFailedError(msg)
    path = run_dir / "artifacts" / config.artifact_digest / MANIFEST_FILE
    try:
        manifest = decode_manifest(path.read_bytes())
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): a report needs the artifact's description"
        raise RunFailedError(msg) from error
    summary = RunSummary(
        run_id=config.run_id,
        task=manifest.task,
        model_name=manifest.model_name,
        artifact_digest=config.artifact_digest,
        created_at=_created_at(run_dir),
        steps={},
        data=_data(run_dir, config, manifest, rounds),
        config=_shown(config),
        fleet=None if config.emulation_file is None else fleet_entry(load_fleet(run_dir / config.emulation_file)),
    )
    measured = run_dir / COMPACT_RESULT
    compact = msgspec.json.decode(measured.read_bytes(), type=Compact) if measured.is_file() else None
    report = build_report(summary, rounds, compact)
    write_report(run_dir, report)
    return report


def write_report(run_dir: Path, report: Report) -> None:
    """Write ``report.json`` and ``report.html``.

    Raises:
        DiskFullError: there is no space.
    """
    write_atomically(run_dir / REPORT_JSON, encode(report))
    write_atomically(run_dir / REPORT_PAGE, render_page(report).encode())


def fleet_entry(fleet: Fleet) -> FleetEntry:
    """An emulated fleet as the report shows it."""
    classes = tuple(
        FleetClass(
            name=one.name,
            device_ids=tuple(device_id for device_id, name in fleet.members.items() if name == one.name),
            compute_factor=one.compute_factor,
            memory_mb=one.memory_mb,
            uplink_mbit_s=one.uplink_mbit_s,
            downlink_mbit_s=one.downlink_mbit_s,
            availability=one.availability,
            drift=tuple(FleetDrift(from_round=d.from_round, factor=d.factor) for d in one.drift),
        )
        for one in fleet.classes
    )
    return FleetEntry(classes=classes, jitter=fleet.jitter, deadline_s=fleet.deadline_s)


def _rounds(run_dir: Path) -> list[RoundRecord]:
    check_not_lost(run_dir)
    if not (run_dir / STATE_FILE).is_file():
        return []
    with contextlib.closing(Store.open(run_dir)) as store:
        return store.load_round_records()


def _created_at(run_dir: Path) -> float:
    """Return when a coordinator first began, Unix seconds, or the first round where the events before it are gone."""
    first = next(iter(EventReader(run_dir / EVENTS_FILE).new_events()), None)
    known = [] if first is None else [first.at]
    if (run_dir / STATE_FILE).is_file():
        with contextlib.closing(Store.open(run_dir)) as store:
            known += [at for at in [store.load_first_round_at()] if at is not None]
    return min(known, default=(run_dir / CONFIG_FILE).stat().st_mtime)


def _data(run_dir: Path, config: CoordinatorConfig, manifest: Manifest, rounds: Sequence[RoundRecord]) -> DataEntry:
    """Return the known numbers of the devices' data: each one's training examples, as its last update stated them."""
    known = {
        device.device_id: device.num_examples
        for record in rounds
        for device in record.devices
        if device.num_examples is not None
    }
    evaluated = [record.evaluation.best_known for record in rounds if record.evaluation is not None]
    num_test = _num_lines(run_dir / config.test_file) if config.test_file is not None and evaluated else 0
    return DataEntry(
        source="data that stay on the devices",
        num_train=sum(known.values()),
        num_test=num_test,
        labels=manifest.labels,
        devices=tuple(DeviceData(device_id=name, num_examples=number, classes={}) for name, number in known.items()),
    )


def _num_lines(path: Path) -> int:
    try:
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError:
        return 0


def _shown(config: CoordinatorConfig) -> dict[str, Scalar]:
    """Options for the report, and the broker without its password."""
    return {**flat(config), "broker": str(BrokerAddress.parse(config.broker_url))}
