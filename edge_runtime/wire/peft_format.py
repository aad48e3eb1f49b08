"""PEFT's on-disk format, which ``PeftModel.from_pretrained`` loads. Pure: JSON and safetensors, no peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edge_runtime.wire.adapter import AdapterLayout, Tensors
from edge_runtime.wire.files import write_atomically
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.plan import Plan
from edge_runtime.wire.tensors import encode_tensors

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
KEY_PREFIX: Final = "base_model.model."
"""What PEFT puts before the base model's own parameter names."""

_TASK_TYPES: Final = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}


def write_peft(directory: Path, manifest: Manifest, adapter: Tensors, rank: int, lora_scaling: float) -> None:
    """Write a full adapter as ``adapter_config.json`` and ``adapter_model.safetensors``.

    Modules are listed by their whole path, so that no other module of the model ends like one of them (BERT's pooler is
    a ``dense`` too). The weights are written first: a directory with a configuration is complete.

    Args:
        directory: where the two files go; made if it is not there.
        manifest: the artifact's manifest.
        adapter: tensors under the full plan.
        rank: their LoRA rank.
        lora_scaling: alpha / rank.

    Raises:
        TensorError: the tensors are not those of a full adapter of this rank.
        DiskFullError: there is no space.
    """
    AdapterLayout.of(manifest, Plan.full(manifest), rank).check(adapter)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {KEY_PREFIX + name: value for name, value in adapter.items()}
    write_atomically(directory / WEIGHTS_FILE, encode_tensors(weights, metadata={"format": "pt"}))
    config = peft_config(manifest, rank, lora_scaling)
    write_atomically(directory / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")


def peft_config(manifest: Manifest, rank: int, lora_scaling: float) -> dict[str, object]:
    """The content of ``adapter_config.json`` for an adapter of this model."""
    return {
        "base_model_name_or_path": manifest.model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora_scaling * rank,
        "lora_dropout": 0.0,
        "modules_to_save": sorted({dense.name.rpartition(".")[0] for dense in manifest.dense}) or None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(target.module for target in manifest.targets),
        "task_type": _TASK_TYPES[manifest.task],
        "use_rslora": False,
    }
