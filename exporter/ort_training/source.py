"""The family that an artifact was exported from, rebuilt from the artifact alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import transformers

from edge_runtime.formats import names
from edge_runtime.inference.description import file_ref
from exporter.errors import OrtExportError
from models.registry import family_for

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.formats.manifest import Manifest
    from models.family import Family


def family_of(directory: Path, manifest: Manifest) -> Family:
    """The family of an artifact, with its targets and classes.

    Args:
        directory: of the artifact.
        manifest: its description.

    Raises:
        OrtExportError: its configuration is missing, damaged, or describes another model.
        ModelUnsupportedError: no family handles it any more.
    """
    path = directory / names.CONFIG_FILE
    ref = manifest.files.get(names.CONFIG_FILE)
    try:
        if ref is None or file_ref(path, on_device=ref.on_device) != ref:
            msg = f"artifact file {path} is not the one that the manifest describes: export the artifact again"
            raise OrtExportError(msg)
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        msg = f"artifact file {path} cannot be read ({str(error).splitlines()[0]}): export the artifact again"
        raise OrtExportError(msg) from error
    if manifest.labels:
        config.id2label = dict(enumerate(manifest.labels))
        config.label2id = {label: index for index, label in enumerate(manifest.labels)}
    family = family_for(config, manifest.task)
    first = manifest.first_tuned
    modules = [t.module.removeprefix(family.block_prefix(first)) for t in manifest.targets if t.layer == first]
    family.choose_targets(modules, top_blocks=manifest.num_layers - first)
    described = {spec.name: spec.shape for spec in manifest.tensors}
    rebuilt = {param.name: param.shape for param in family.frozen_params()}
    if rebuilt != described or family.target_specs() != manifest.targets:
        msg = f"artifact {directory}: weights and targets are not those of its configuration; export the artifact again"
        raise OrtExportError(msg)
    return family
