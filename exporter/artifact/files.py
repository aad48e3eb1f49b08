"""The files of an artifact, and the manifest that describes them."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx
import safetensors.torch
import tokenizers

from edge_runtime.bounds.versioned import encode_description
from edge_runtime.formats import names
from edge_runtime.formats.manifest import (
    FORMAT_VERSION,
    DenseSpec,
    Manifest,
    TensorSpec,
    TextSpec,
    digest_of,
)
from edge_runtime.inference.description import file_ref
from edge_runtime.system.files import write_atomically
from edge_runtime.system.versions import installed
from exporter.output import Kind, config_bytes, foreign_writer
from models.tokenizer import TOKENIZER_CONFIG

if TYPE_CHECKING:
    from exporter.artifact.base import Base
    from models.loading import PretrainedModel

ARTIFACT: Final = Kind("artifact", names.MANIFEST_FILE)
_PRODUCERS: Final = ("fedspine", "onnx", "torch", "transformers")
_TOKENIZER_EXTRAS: Final = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "chat_template.jinja",
)
TOKENIZER_FILES: Final = (names.TOKENIZER_FILE, *_TOKENIZER_EXTRAS)
"""Files of a tokenizer in an artifact: the first is for devices, the others for Hugging Face's ``AutoTokenizer``."""
_ON_DEVICE: Final = {
    names.TRAINING_GRAPH,
    names.EVALUATION_GRAPH,
    names.OPTIMIZER_GRAPH,
    *names.STAGES,
    names.BASE_FILE,
    names.INITIAL_FILE,
    names.TOKENIZER_FILE,
}


def describe(model: PretrainedModel, base: Base) -> Manifest:
    """Manifest of a model, without files yet."""
    family = model.family
    shapes = {param.name: param.shape for param in family.head_params}
    layers = {
        family.block_prefix(layer) + p.name: layer for layer in range(family.num_layers) for p in family.block_params
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        family=family.name,
        task=model.task,
        model_name=model.name,
        num_layers=family.num_layers,
        hidden_size=family.hidden_size,
        word_embedding=family.word_embedding,
        post_norm=family.post_norm,
        block_prefixes=tuple(family.block_prefix(layer) for layer in range(family.num_layers)),
        labels=model.labels,
        text=_text_spec(model),
        groups=family.group_specs(),
        tensors=tuple(
            TensorSpec(
                name=param.name,
                shape=param.shape,
                dtype=base.dtypes[param.name],
                layer=layers.get(param.name),
                prune=param.prune,
            )
            for param in family.frozen_params()
        ),
        targets=family.target_specs(),
        dense=tuple(DenseSpec(name=name, shape=shapes[name]) for name in family.dense),
        files={},
        producer=installed(_PRODUCERS),
    )


def _text_spec(model: PretrainedModel) -> TextSpec:
    eos = model.tokens.eos
    appends_itself = eos is not None and model.tokenizer("a")["input_ids"][-1:] == [eos]
    return TextSpec(
        pad_token_id=model.tokens.pad,
        eos_token_id=eos,
        end_token_ids=model.tokens.ends if model.task == "causal-lm" else (),
        append_eos=model.task == "causal-lm" and eos is not None and not appends_itself,
        max_length=model.family.max_length,
        vocab_size=model.family.vocab_size,
    )


def write_graph(directory: Path, name: str, graph: onnx.ModelProto) -> None:
    """Write a graph, after ONNX's own check of it."""
    onnx.checker.check_model(graph)
    write_atomically(directory / name, graph.SerializeToString(deterministic=True))


def write_model_files(directory: Path, model: PretrainedModel, base: Base) -> None:
    """Write weights, tokenizer, and the files from which a server builds the Hugging Face model again."""
    for name, tensors in ((names.BASE_FILE, base.tensors), (names.INITIAL_FILE, model.dense)):
        with foreign_writer(directory, sum(tensor.nbytes for tensor in tensors.values())):
            # writes tensors in place, without a copy in memory
            safetensors.torch.save_file(dict(tensors), directory / name)
        # safetensors lets only the owner read it
        (directory / name).chmod((directory.stat().st_mode & 0o666) | stat.S_IWUSR)
    config: dict[str, Any] = model.config.to_dict()
    config.pop("_name_or_path", None)
    write_atomically(directory / names.CONFIG_FILE, config_bytes(config))
    if model.generation:
        write_atomically(directory / names.GENERATION_FILE, config_bytes(model.generation))
    saved = directory / ".tokenizer"
    model.tokenizer.save_pretrained(saved)
    for name in _TOKENIZER_EXTRAS:
        if (saved / name).is_file():
            (saved / name).rename(directory / name)
    shutil.rmtree(saved)
    # Some tokenizers are stored with the padding and truncation of their last use; whoever tokenises decides on these.
    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_atomically(directory / names.TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write the manifest; returns its SHA-256, the artifact's digest."""
    data = encode_description(manifest)
    write_atomically(directory / names.MANIFEST_FILE, data)
    return digest_of(data)


def list_files(directory: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file of an artifact but the manifest."""
    return {
        path.name: file_ref(path, on_device=path.name in _ON_DEVICE)
        for path in sorted(directory.iterdir())
        if path.name != names.MANIFEST_FILE
    }
