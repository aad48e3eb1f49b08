"""An artifact that was exported earlier, used by a run in place of an export of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from broker_server.errors import ConfigError
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.manifest import Manifest, Task


def check_artifact(directory: Path, task: Task) -> None:
    """Refuse an artifact that a run of ``task`` cannot use, before anything is written.

    Raises:
        ConfigError: it is for another task.
        ArtifactCorruptedError: there is no artifact, or a file is not the one that its manifest describes.
        ManifestError: its manifest is malformed, or of another version.
    """
    manifest = Artifact.open(directory).manifest
    if manifest.task != task:
        msg = f"artifact {directory} is for {manifest.task}, expected {task}: export the model for that task"
        raise ConfigError(msg)


def adopt_artifact(directory: Path, labels: tuple[str, ...], destination: Path) -> None:
    """Link (or, across file systems, copy) the files of an artifact to ``destination``, which must not exist.

    Args:
        directory: a checked artifact.
        labels: classes of the data, in any order; empty for causal-lm.
        destination: the new directory; its parent exists.

    Raises:
        ConfigError: the artifact was exported for other classes.
    """
    manifest = Artifact.open(directory, verify=False).manifest
    _check_labels(manifest, labels, directory)
    shutil.copytree(directory, destination, copy_function=_link)


def _check_labels(manifest: Manifest, labels: tuple[str, ...], directory: Path) -> None:
    if set(manifest.labels) != set(labels):
        msg = (
            f"artifact {directory} was exported for the classes {list(manifest.labels[:8])}, the data has "
            f"{list(labels[:8])}: export the model for these"
        )
        raise ConfigError(msg)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
