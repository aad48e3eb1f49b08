"""A benchmark of the device engine from beginning to end, in a folder that is gone afterwards."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from broker_server.benchmark.contenders import contenders_of
from broker_server.benchmark.play import Stage
from broker_server.benchmark.products import products_of_step
from broker_server.benchmark.schema import BenchReport
from broker_server.benchmark.settings import BenchSettings
from broker_server.benchmark.summarise import summarise
from broker_server.errors import ConfigError
from broker_server.experiments.run.preparation import model_source
from broker_server.experiments.run.supervisor import Supervisor
from edge_runtime.benchmark.work import random_plan
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.manifest import Manifest


def measure(settings: BenchSettings, say: Callable[[str], None], clock: Callable[[], float]) -> BenchReport:
    """Export the model, let the contenders take turns, and combine their measurements.

    However it ends, no process is left running and no file is left behind.

    Args:
        settings: of the benchmark.
        say: takes a line about each thing that is done.
        clock: Unix seconds.

    Raises:
        ConfigError: a peer is not known, or the examples are longer than the model's positions allow.
        MissingExtraError: a package of a peer is not installed.
        ModelError: the model is a path without a model.
        ChildFailedError: a process failed; its exit code is passed on where it says more than that.
        DiskFullError: there is no space for the artifact.
    """
    contenders = contenders_of(settings)
    settings = dataclasses.replace(settings, model=model_source(settings.model))
    before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="fedspine-bench-") as folder,
        Supervisor(Path(folder) / "logs") as supervisor,
    ):
        stage = Stage(settings, Path(folder), supervisor, say)
        stage.export(settings.model)
        manifest = Artifact.open(stage.artifact, verify=False).manifest
        _check_length(manifest, settings.length)
        if any(contender.needs_ort_models for contender in contenders):
            stage.export_ort_models()
        plan = random_plan(manifest, settings.arm.pruning_ratio, np.random.default_rng(settings.seed))
        products = products_of_step(manifest, plan, settings.arm.rank, settings.batch_size, settings.length)
        samples = stage.play(contenders, sorted(products))
    loads = (before, os.getloadavg()[0])
    return summarise(settings, manifest, contenders, products, samples, now=clock(), loads=loads)


def _check_length(manifest: Manifest, length: int) -> None:
    if length > manifest.text.max_length:
        msg = (
            f"--length {length} is too long for {manifest.model_name}: give {manifest.text.max_length} tokens or fewer"
        )
        raise ConfigError(msg)
