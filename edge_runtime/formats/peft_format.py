"""PEFT's on-disk format, which ``PeftModel.from_pretrained`` loads. Pure: JSON and safetensors, no peft.

PEFT has no merged factors. So they become further components of the adapter: [B merged_B] [A; merged_A] is
B A + merged_B merged_A, and PEFT loads exactly the fleet's model. Such a module has a larger rank than the others,
given in ``rank_pattern``; ``alpha_pattern`` keeps its scaling. It can be trained further, with that larger rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout, Tensors
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Merged, check_merged
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.system.files import make_directories, write_atomically

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
KEY_PREFIX: Final = "base_model.model."
"""Prefix that PEFT puts before the base model's own parameter names."""

_TASK_TYPES: Final = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}


def write_peft(
    directory: Path,
    manifest: Manifest,
    adapter: Tensors,
    rank: int,
    lora_scaling: float,
    *,
    merged: Merged | None = None,
    base_model: str | None = None,
    frozen: Tensors | None = None,
) -> None:
    """Write a full adapter as ``adapter_config.json`` and ``adapter_model.safetensors``.

    Modules are listed by their whole path, because PEFT also matches ends of paths (BERT's pooler is a ``dense`` too).
    The weights are written first: a directory with a configuration is complete.

    Args:
        directory: folder of the two files, made if it is missing.
        manifest: the artifact's manifest.
        adapter: tensors under the full plan.
        rank: their LoRA rank.
        lora_scaling: alpha / rank.
        merged: factors folded into the frozen weights, full plan; see the module.
        base_model: directory or hub id of the base model; None = unknown, see :func:`peft_config`.
        frozen: weights of whole modules that the base model may lack, by Hugging Face name.

    Raises:
        TensorError: the tensors are not those of a full adapter of this rank, or merged factors do not fit.
        DiskFullError: there is no space.
    """
    plan, merged = Plan.full(manifest), {} if merged is None else merged
    AdapterLayout.of(manifest, plan, rank).check(adapter)
    check_merged(manifest, plan, merged)
    make_directories(directory)
    weights = {KEY_PREFIX + name: value for name, value in adapter.items()}
    for module, (merged_a, merged_b) in merged.items():
        a, b = names.lora_a(module), names.lora_b(module)
        weights[KEY_PREFIX + a] = np.concatenate([adapter[a], merged_a], dtype=np.float32)
        weights[KEY_PREFIX + b] = np.concatenate([adapter[b], merged_b], axis=1, dtype=np.float32)
    weights |= {KEY_PREFIX + name: value for name, value in (frozen or {}).items()}
    write_atomically(directory / WEIGHTS_FILE, encode_tensors(weights, metadata={"format": "pt"}))
    ranks = {module: rank + merged[module][0].shape[0] for module in sorted(merged)}
    whole = sorted({name.rpartition(".")[0] for name in frozen or {}})
    config = peft_config(manifest, rank, lora_scaling, ranks, base_model=base_model, whole=whole)
    write_atomically(directory / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")


def unknown_base(manifest: Manifest) -> str:
    """Return the name for a base model of unknown origin: a hub id unchanged, else a relative folder.

    The bare name of a directory is not safe: PEFT would fetch a stranger's model of that name from the hub.
    """
    name = manifest.model_name
    return name if "/" in name else f"./{name}"


def peft_config(
    manifest: Manifest,
    rank: int,
    lora_scaling: float,
    ranks: Mapping[str, int] | None = None,
    *,
    base_model: str | None = None,
    whole: Sequence[str] = (),
) -> dict[str, object]:
    """The content of ``adapter_config.json`` for an adapter of this model.

    Args:
        manifest: the artifact's manifest.
        rank: LoRA rank of all modules except those in ``ranks``.
        lora_scaling: alpha / rank, the same for all modules.
        ranks: LoRA rank by module. PEFT reads its keys as regular expressions.
        base_model: directory or hub id of the base model; None = see :func:`unknown_base`.
        whole: modules whose weights are stored with the adapter, beside the dense tensors.
    """
    saved = {dense.name.rpartition(".")[0] for dense in manifest.dense} | set(whole)
    ranks = {re.escape(module): own for module, own in (ranks or {}).items()}
    return {
        "alpha_pattern": {module: lora_scaling * own for module, own in ranks.items()},
        "base_model_name_or_path": unknown_base(manifest) if base_model is None else base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora_scaling * rank,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": sorted(target.module for target in manifest.targets),
        "task_type": _TASK_TYPES[manifest.task],
        "use_rslora": False,
    }
