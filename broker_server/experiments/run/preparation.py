"""The preparation of a run before any process starts: model, data and ports are checked; then the data is split."""

from __future__ import annotations

import dataclasses
import importlib.resources
import socket
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from broker_server.emulation.context import fleet_context
from broker_server.emulation.fleet import load_fleet
from broker_server.errors import ConfigError
from broker_server.experiments.run.examples import KEY, LABEL, DataSet, Example, load_data, write_examples
from broker_server.experiments.run.layout import RunDirectory
from broker_server.experiments.run.reuse import check_artifact
from broker_server.experiments.run.settings import EMBEDDED_BROKERS, RunSettings
from broker_server.experiments.run.split import parse_split, split
from broker_server.experiments.run.starting import check_rank, read_adapter
from broker_server.methods.by_name import check_method
from broker_server.methods.scheduler import make_scheduler
from broker_server.naming import said_of
from broker_server.options import flat
from broker_server.serving.report.encoding import encode
from broker_server.serving.report.schema import DataEntry, DeviceData
from broker_server.serving.services.broker import find_broker
from broker_server.serving.services.ports import check_port
from edge_runtime.engine.json_lines import check_file
from edge_runtime.formats.manifest import Manifest
from edge_runtime.system.files import write_atomically
from models.errors import ModelError
from models.heads import are_indices
from models.sources import check_source

HOST: Final = "127.0.0.1"
"""All processes of a run talk over loopback."""

BUILT_IN_MODEL: Final = "tiny-llama"
_MAX_CLASSES_SHOWN = 8


def check_settings(settings: RunSettings) -> None:
    """Refuse settings that are certain to fail before anything is written.

    Raises:
        ModelError: the model is a path without a model.
        DataInvalidError: a data file does not exist, or is not a file.
        PortTakenError: a port that was asked for is in use.
        ConfigError: an unknown scheduler or aggregation, one that needs an emulated fleet, a fleet that cannot be used,
            or an artifact that is for another task, stored otherwise or with other LoRA targets.
        ArtifactCorruptedError: the artifact that was given is none, or damaged.
        MissingExtraError: mosquitto is asked for and not installed.
    """
    with said_of("model"):
        model_source(settings.model)
    if settings.artifact:
        with said_of("artifact"):
            check_artifact(
                Path(settings.artifact),
                settings.task,
                base=settings.base,
                targets=settings.target_names,
                top_blocks=settings.top_blocks,
            )
    if settings.adapter:
        check_rank(read_adapter(Path(settings.adapter)), settings.max_rank)
    for name in ("data", "test"):
        if path := getattr(settings, name):
            with said_of(name):
                check_file(Path(path))
    for name in ("broker_port", "artifact_port"):
        if getattr(settings, name):
            with said_of(name):
                check_port(HOST, getattr(settings, name))
    if settings.broker in EMBEDDED_BROKERS:
        with said_of("broker"):
            find_broker(settings.broker)
    with said_of("emulate"):
        fleet = load_fleet(settings.emulate).dealt(settings.device_ids) if settings.is_emulated else None
        context = fleet_context(fleet, settings.training.num_rounds, settings.axes)
    if settings.calibration:
        _check_calibration(Path(settings.calibration))
    with said_of("scheduler"):
        make_scheduler(settings.scheduler, settings.arms, context)


def _check_calibration(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a directory" if path.is_dir() else "lies in a folder that does not exist"
        msg = f"--calibration {path} {problem}: give a JSON file, which may be there or not"
        raise ConfigError(msg)


def model_source(model: str) -> str:
    """Directory or hub id to export.

    Args:
        model: as the user gave it; empty = the small Llama that comes with the package.

    Raises:
        ModelError: a path that is not a model; see :func:`models.sources.check_source`.
    """
    if not model:
        return str(importlib.resources.files("models") / "pretrained" / BUILT_IN_MODEL)
    path = Path(model).expanduser()
    source = str(path.resolve()) if path.exists() else model
    check_source(source)
    return source


def base_model(settings: RunSettings) -> str | None:
    """Directory or hub id that the run's artifact was made from; None if only the artifact was given."""
    if settings.artifact and not settings.model:
        return None
    try:
        return model_source(settings.model)
    except ModelError:  # the model was removed after the export; rounds do not need it
        return str(Path(settings.model).expanduser().absolute())


def model_name(settings: RunSettings) -> str:
    """Name of the model for people."""
    return Path(settings.model).name if settings.model else BUILT_IN_MODEL


def free_port() -> int:
    """A port on HOST that nothing listens on at the moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def load(settings: RunSettings) -> DataSet:
    """Read and check all data of a run; see :func:`~broker_server.experiments.run.examples.load_data`."""
    data = Path(settings.data) if settings.data else None
    test = Path(settings.test) if settings.test else None
    return load_data(data, test, settings.fields, np.random.default_rng([settings.seed, 0]))


def may_be_indices(labels: tuple[str, ...]) -> bool:
    """Return whether the data's classes may be numbers of the model's classes, whose names only the model knows."""
    return bool(labels) and all(label.isdecimal() for label in labels)


def check_model(settings: RunSettings, manifest: Manifest) -> None:
    """Refuse settings that do not fit the model, before devices start: the method, and ``--max-length``.

    Raises:
        ConfigError: a setting does not fit.
    """
    check_method(settings.method, flat(settings), manifest)
    max_length = settings.training.max_length
    if max_length > manifest.text.max_length:
        most = manifest.text.max_length
        msg = f"--max-length is {max_length}, {manifest.model_name} takes up to {most} tokens: give {most} or fewer"
        raise ConfigError(msg)


def named_classes(data: DataSet, labels: tuple[str, ...]) -> DataSet:
    """The data with the names of the model's classes where it has their numbers.

    Args:
        data: as it was read.
        labels: the model's classes, in the order of its outputs.
    """
    if not are_indices(data.labels, labels):
        return data
    train, test = ([{**e, LABEL: labels[int(str(e[LABEL]))]} for e in part] for part in (data.train, data.test))
    return dataclasses.replace(data, train=train, test=test, labels=labels)


def write_split(settings: RunSettings, data: DataSet, directory: RunDirectory) -> None:
    """Split the data over the devices; ``data/summary.json`` is written last and says that it is done.

    Raises:
        ConfigError: the data cannot be split this way.
        DiskFullError: there is no space.
    """
    spec = parse_split(settings.split)
    split_field = LABEL if settings.fields.key is None else KEY
    rng = np.random.default_rng([settings.seed, 1])
    parts = split(data.train, settings.num_devices, spec, rng, label_field=split_field, key_field=KEY)
    directory.data.mkdir(exist_ok=True)
    devices = []
    for device_id, part in zip(settings.device_ids, parts, strict=True):
        examples = [data.train[index] for index in part]
        write_examples(directory.device_data(device_id), examples)
        classes = _most_frequent(examples, split_field)
        devices.append(DeviceData(device_id=device_id, num_examples=len(examples), classes=classes))
    write_examples(directory.test_file, data.test)
    summary = DataEntry(
        source=Path(settings.data).name if settings.data else "docstrings of Python's standard library",
        num_train=len(data.train),
        num_test=len(data.test),
        labels=data.labels,
        devices=tuple(devices),
    )
    write_atomically(directory.data_summary, encode(summary))


def read_summary(directory: RunDirectory) -> DataEntry:
    """Return the summary that :func:`write_split` wrote."""
    return msgspec.json.decode(directory.data_summary.read_bytes(), type=DataEntry)


def _most_frequent(examples: list[Example], field: str) -> dict[str, int]:
    return dict(Counter(str(e[field]) for e in examples if field in e).most_common(_MAX_CLASSES_SHOWN))
