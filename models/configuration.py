"""``config.json`` as transformers 4 reads it, whichever version wrote it.

transformers 5 moved the settings of rotary positions to ``rope_parameters``; version 4 keeps that key, looks at its
own, and takes their defaults without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from edge_runtime.formats.manifest import Task
from edge_runtime.formats.peft_format import CONFIG_FILE as ADAPTER_CONFIG
from models import rotary
from models.checkpoint_files import file_of
from models.registry import family_class
from models.settings import check_settings
from models.sizes import check_sizes
from models.sources import CONFIG_FILE, adapter_error, check_quantization
from models.special_tokens import without_foreign_ids


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A checkpoint's configuration."""

    config: Any
    """Configuration of transformers, with every setting where the installed version reads it."""
    raw: Mapping[str, Any]
    """Content of the configuration file."""
    reference: Any | None
    """Configuration with which transformers loads the reference, if its own reading of the directory is known to fail;
    None = transformers reads the directory."""
    notes: tuple[str, ...]
    """Remarks about it for the user."""


def read_configuration(model: str | Path, task: Task) -> Configuration:
    """Read and check the configuration of a checkpoint.

    Args:
        model: local directory, or id on the hub.
        task: of the tuning.

    Raises:
        ModelUnsupportedError: an architecture, a task or a setting that no family handles; names the key.
        OSError: transformers cannot read it.
    """
    if not Path(model).is_dir() and file_of(model, CONFIG_FILE) is None:
        adapter = file_of(model, ADAPTER_CONFIG)
        if adapter is not None:
            raise adapter_error(model, adapter)
    raw: dict[str, Any]
    raw, _ = transformers.PretrainedConfig.get_config_dict(str(model))
    family = family_class(str(raw.get("model_type")), task)
    check_quantization(raw, model)
    settings = family.settings_of(raw["model_type"])
    notes = check_settings(raw, settings)
    check_sizes(raw)
    sane = without_foreign_ids(raw)
    read, reference = sane, None if sane == raw else sane
    if rotary.PARAMETERS in settings.used:
        read = {key: value for key, value in sane.items() if key not in rotary.KEYS}
        read |= rotary.written_for_transformers_4(rotary.read(raw))
        if raw.get(rotary.PARAMETERS):
            reference = _respelled(sane)
    kind = transformers.CONFIG_MAPPING[raw["model_type"]]
    return Configuration(
        config=kind.from_dict(read),
        raw=raw,
        reference=None if reference is None else kind.from_dict(reference),
        notes=tuple(notes),
    )


def _respelled(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of transformers 5 with its rotary settings moved, as they are, to where version 4 looks."""
    parameters = raw[rotary.PARAMETERS]
    parts = [part for part in parameters.values() if isinstance(part, dict)]
    scaling = dict(parts[0] if parts else parameters)
    theta = scaling.pop(rotary.THETA, raw.get(rotary.THETA, 10_000.0))
    moved = {key: value for key, value in raw.items() if key != rotary.PARAMETERS}
    return {**moved, rotary.THETA: theta, rotary.SCALING: scaling if scaling.get("rope_type") != "default" else None}
