"""An artifact without graphs, small enough to make for every test, and trainers of exported ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge_runtime.bounds.versioned import encode_description
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.trainer import Trainer
from edge_runtime.formats.manifest import (
    FORMAT_VERSION,
    DenseSpec,
    FileRef,
    GroupSpec,
    Manifest,
    PruneAxis,
    TargetSpec,
    Task,
    TensorSpec,
    TextSpec,
    digest_of,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[EOS]", "the", "cat", "sat", "on", "mat", "dog"]

MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """A function that writes an artifact of two layers (3 heads of 2, 5 channels, hidden size 4) and opens it."""

    def make(task: Task = "text-classification", *, with_tokenizer: bool = True, append_eos: bool = False) -> Artifact:
        directory = tmp_path / f"artifact-{task}-{with_tokenizer}-{append_eos}"
        if directory.exists():
            return Artifact.open(directory)
        directory.mkdir()
        rng = np.random.default_rng(0)
        tensors = _tensors()
        classify = task == "text-classification"
        save_file({t.name: rng.normal(size=t.shape).astype(t.dtype) for t in tensors}, directory / "base.safetensors")
        save_file({"classifier.weight": np.ones((2, 4), np.float32)}, directory / "initial.safetensors")
        if with_tokenizer:
            _write_tokenizer(directory / "tokenizer.json", classify=classify)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            family="bert",
            task=task,
            model_name="tiny",
            num_layers=2,
            block_prefixes=("layer.0.", "layer.1."),
            word_embedding="embedding",
            post_norm=False,
            hidden_size=4,
            labels=("negative", "positive") if classify else (),
            text=TextSpec(pad_token_id=0, eos_token_id=3, append_eos=append_eos, max_length=16, vocab_size=len(WORDS)),
            groups=tuple(
                GroupSpec(layer=layer, group=group, num_units=num_units)
                for layer in range(2)
                for group, num_units in (("heads", 3), ("channels", 5))
            ),
            tensors=tensors,
            targets=(TargetSpec(module="layer.0.up", layer=0, in_features=4, out_features=5, out_prune=_axis(0)),),
            dense=(DenseSpec(name="classifier.weight", shape=(2, 4)),) if classify else (),
            files={path.name: _ref(path) for path in sorted(directory.iterdir())},
            producer={},
        )
        (directory / "manifest.json").write_bytes(encode_description(manifest))
        return Artifact.open(directory)

    return make


def _axis(axis: int, group: str = "channels", unit_size: int = 1) -> PruneAxis:
    return PruneAxis(axis=axis, group=group, unit_size=unit_size)


def _tensors() -> tuple[TensorSpec, ...]:
    tensors = [TensorSpec(name="embedding", shape=(10, 4), dtype="float32", layer=None)]
    for layer in range(2):
        heads = (_axis(0, "heads", 2),)
        tensors += [
            TensorSpec(name=f"layer.{layer}.query", shape=(6, 4), dtype="float32", layer=layer, prune=heads),
            TensorSpec(
                name=f"layer.{layer}.both",
                shape=(6, 5),
                dtype="float16",
                layer=layer,
                prune=(*heads, _axis(1)),
            ),
            TensorSpec(name=f"layer.{layer}.norm", shape=(4,), dtype="float16", layer=layer),
        ]
    return tuple(tensors)


def _write_tokenizer(path: Path, *, classify: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if classify:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.save(str(path))


def _ref(path: Path) -> FileRef:
    data = path.read_bytes()
    return FileRef(digest=digest_of(data), size_bytes=len(data), on_device=True)


@pytest.fixture(
    scope="module",
    params=itertools.product(["tiny_bert_artifact", "tiny_llama_artifact"], ["fused", "staged"]),
    ids="-".join,
)
def trainer(request: pytest.FixtureRequest) -> Trainer:
    """Of both families, in both modes, on one thread."""
    name, mode = request.param
    return Trainer(Artifact.open(request.getfixturevalue(name)), num_threads=1, mode=mode)
