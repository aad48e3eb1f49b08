"""An artifact that was exported earlier, used by a run in place of an export of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from broker_server.errors import ConfigError
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.manifest import NF4_BLOCK_SIZE, BaseDtype, Manifest, Task, TensorSpec
from models.heads import are_indices


def check_artifact(
    directory: Path, task: Task, *, base: BaseDtype = "stored", targets: Sequence[str] = (), top_blocks: int = 0
) -> None:
    """Refuse an artifact that differs from the one that a run would export itself, before anything is written.

    Args:
        directory: the artifact.
        task: of the run.
        base: how its frozen weights should be stored.
        targets: which linear layers should carry factors, whole modules or their last parts; empty for any.
        top_blocks: how many blocks should, counted from the head; 0 for any.

    Raises:
        ConfigError: it is for another task, stored otherwise, or has other LoRA targets.
        ArtifactCorruptedError: there is no artifact, or a file is not the one that its manifest describes.
        ManifestError: its manifest is malformed, or of another version.
    """
    manifest = Artifact.open(directory).manifest
    if manifest.task != task:
        msg = f"artifact {directory} is for {manifest.task}, expected {task}: export the model for that task"
        raise ConfigError(msg)
    for tensor in manifest.tensors:
        if base != "stored" and len(tensor.shape) == 2 and tensor.dtype not in _dtypes(tensor, base):
            msg = (
                f"artifact {directory} stores {tensor.name} as {tensor.dtype}, but --base says {base}: export the "
                "model with that base, or leave --base out"
            )
            raise ConfigError(msg)
    _check_targets(manifest, targets, directory)
    num_tuned = manifest.num_layers - manifest.first_tuned
    if top_blocks and top_blocks != num_tuned:
        msg = (
            f"artifact {directory} has LoRA factors on {num_tuned} blocks, --top-blocks says {top_blocks}: export the "
            "model with that number, or leave --top-blocks out"
        )
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


def _dtypes(tensor: TensorSpec, base: BaseDtype) -> set[str]:
    """Return the types that an export with ``base`` may give a matrix.

    float16 may overflow, and is float32 then; nf4 needs rows that its block size divides, and is int8 otherwise.
    """
    if base == "float16":
        return {"float16", "float32"}
    is_divided = tensor.layer is not None and tensor.shape[tensor.block_axis] % NF4_BLOCK_SIZE == 0
    return {"int8" if base == "nf4" and not is_divided else base}


def _check_targets(manifest: Manifest, names: Sequence[str], directory: Path) -> None:
    """Refuse an artifact whose factors are not on exactly the named modules."""
    if not names:
        return
    matrices = {
        tensor.name.removesuffix(".weight")
        for tensor in manifest.tensors
        if tensor.layer is not None and tensor.layer >= manifest.first_tuned and len(tensor.shape) == 2
    }
    wanted = {module for module in matrices if any(f".{module}".endswith(f".{name}") for name in names)}
    found = {target.module for target in manifest.targets}
    if found != wanted:
        last_parts = sorted({module.rpartition(".")[2] for module in found})
        msg = (
            f"artifact {directory} has the LoRA targets {','.join(last_parts)}, but --targets says {','.join(names)}: "
            "export the model with these targets, or leave --targets out"
        )
        raise ConfigError(msg)


def _check_labels(manifest: Manifest, labels: tuple[str, ...], directory: Path) -> None:
    if not (set(labels) <= set(manifest.labels) or are_indices(labels, manifest.labels)):
        msg = (
            f"artifact {directory} was exported for the classes {list(manifest.labels[:8])}, but the data has "
            f"{list(labels[:8])}: export the model for these"
        )
        raise ConfigError(msg)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
