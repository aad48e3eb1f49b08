"""The Hugging Face model that an artifact describes, with an adapter merged into it by PEFT."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import safetensors
import safetensors.numpy
import torch
import transformers
from transformers.modeling_utils import no_init_weights

from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.peft_format import write_peft
from edge_runtime.formats.quantization import Quantized, stored_tensor
from edge_runtime.formats.seed_pool import SeedPool
from edge_runtime.zero_order.pool import Direction, moved, moved_dense, tensor_indices
from exporter.compact.source import CompactSource
from exporter.errors import CompactInputError
from models.loading import AUTO_CLASSES


def base_model(artifact_dir: Path, manifest: Manifest, pool: SeedPool | None = None) -> Any:
    """The Hugging Face model of an artifact in float32, built from its files alone; dense tensors are not yet set.

    Args:
        artifact_dir: of the artifact.
        manifest: of the artifact.
        pool: moves all weights; None = they are the artifact's.

    Raises:
        CompactInputError: configuration and weights do not make a model.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(artifact_dir, local_files_only=True)
        if manifest.labels:
            config.id2label = dict(enumerate(manifest.labels))
            config.label2id = {label: index for index, label in enumerate(manifest.labels)}
        with no_init_weights():
            model: Any = AUTO_CLASSES[manifest.task].from_config(config, dtype=torch.float32)
        stored = safetensors.numpy.load_file(artifact_dir / names.BASE_FILE)
        direction = None if pool is None else Direction.of(pool)
        indices = {} if direction is None else tensor_indices(manifest)
        state = {spec.name: _float32(stored_tensor(stored, spec)) for spec in manifest.tensors}
        if direction is not None:
            state = {name: torch.from_numpy(moved(v.numpy(), indices[name], direction)) for name, v in state.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (OSError, ValueError, RuntimeError, TensorError, safetensors.SafetensorError) as error:
        msg = f"artifact {artifact_dir} does not make a model ({str(error).splitlines()[0]}): export it again"
        raise CompactInputError(msg) from error
    model.tie_weights()
    absent = set(missing) - {dense.name for dense in manifest.dense} - set(_tied(model))
    if absent or unexpected:
        differing = min([*absent, *unexpected])
        msg = (
            f"artifact {artifact_dir}: weights do not fit the configuration, for example {differing!r}: export it again"
        )
        raise CompactInputError(msg)
    return model.eval()


def merged_model(source: CompactSource) -> Any:
    """The artifact's model with the source's adapter in its weights, and all that was merged before; dense tensors set.

    The adapter goes through PEFT's own format and code, so that the deployed model is the one that PEFT would make.

    Raises:
        CompactInputError: see :func:`base_model`.
        TensorError: the adapter is not a full one.
    """
    model = base_model(source.artifact_dir, source.manifest, source.pool)
    adapter = source.adapter
    if source.pool is not None:
        adapter = {**adapter, **moved_dense(source.manifest, adapter, source.pool)}
    with tempfile.TemporaryDirectory(prefix="fedspine-peft-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_peft(Path(folder), source.manifest, adapter, source.rank, source.lora_scaling, merged=source.merged)
        merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return merged.eval().requires_grad_(requires_grad=False)


def _tied(model: Any) -> list[str]:
    return list(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else []


def _float32(stored: Any) -> torch.Tensor:
    """A copy."""
    value = stored.float32() if isinstance(stored, Quantized) else stored
    return torch.from_numpy(value).to(torch.float32)
