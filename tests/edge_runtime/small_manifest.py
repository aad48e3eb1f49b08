"""A small manifest with everything a real one has: two layers, two groups, targets pruned on either side, a head."""

from __future__ import annotations

import pytest

from edge_runtime.formats.manifest import (
    FORMAT_VERSION,
    DenseSpec,
    FileRef,
    GroupSpec,
    Manifest,
    PruneAxis,
    TargetSpec,
    TensorSpec,
    TextSpec,
)

HIDDEN, HEADS, HEAD_SIZE, CHANNELS = 6, 4, 3, 10


def prune(axis: int, group: str) -> PruneAxis:
    return PruneAxis(axis=axis, group=group, unit_size=HEAD_SIZE if group == "heads" else 1)


def layer_tensors(layer: int) -> list[TensorSpec]:
    width = HEADS * HEAD_SIZE
    return [
        TensorSpec(
            name=f"l{layer}.q.weight", shape=(width, HIDDEN), dtype="float32", layer=layer, prune=(prune(0, "heads"),)
        ),
        TensorSpec(
            name=f"l{layer}.down.weight",
            shape=(HIDDEN, CHANNELS),
            dtype="float32",
            layer=layer,
            prune=(prune(1, "channels"),),
        ),
    ]


def layer_targets(layer: int) -> list[TargetSpec]:
    width = HEADS * HEAD_SIZE
    return [
        TargetSpec(
            module=f"l{layer}.q", layer=layer, in_features=HIDDEN, out_features=width, out_prune=prune(0, "heads")
        ),
        TargetSpec(
            module=f"l{layer}.down",
            layer=layer,
            in_features=CHANNELS,
            out_features=HIDDEN,
            in_prune=prune(1, "channels"),
        ),
    ]


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    groups = [
        GroupSpec(layer=layer, group=group, num_units=num_units)
        for layer in range(2)
        for group, num_units in (("heads", HEADS), ("channels", CHANNELS))
    ]
    embedding = TensorSpec(name="embed.weight", shape=(20, HIDDEN), dtype="float16", layer=None)
    return Manifest(
        format_version=FORMAT_VERSION,
        family="bert",
        task="text-classification",
        model_name="small",
        num_layers=2,
        block_prefixes=("l0.", "l1."),
        word_embedding="embed.weight",
        post_norm=False,
        hidden_size=HIDDEN,
        labels=("bad", "good"),
        text=TextSpec(pad_token_id=0, eos_token_id=None, append_eos=False, max_length=32, vocab_size=20),
        groups=tuple(groups),
        tensors=(*layer_tensors(0), *layer_tensors(1), embedding),
        targets=(*layer_targets(0), *layer_targets(1)),
        dense=(DenseSpec(name="classifier.weight", shape=(2, HIDDEN)), DenseSpec(name="classifier.bias", shape=(2,))),
        files={"training.onnx": FileRef(digest="a" * 64, size_bytes=3, on_device=True)},
        producer={"fedspine": "0.1.0"},
    )
