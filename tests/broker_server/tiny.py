"""A model of two layers, small enough for every test: 3 heads of 2, 5 channels, hidden size 4, a classifier of 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from edge_runtime.bounds.versioned import encode_description
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
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
    digest_of,
)
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.measures import Capabilities

HIDDEN, HEADS, HEAD_DIM, CHANNELS, LAYERS = 4, 3, 2, 5, 2

Adapter = dict[str, npt.NDArray[np.float32]]


def heads(axis: int) -> PruneAxis:
    return PruneAxis(axis=axis, group="heads", unit_size=HEAD_DIM)


def channels(axis: int) -> PruneAxis:
    return PruneAxis(axis=axis, group="channels", unit_size=1)


def linears(layer: int) -> list[tuple[str, tuple[int, int], PruneAxis]]:
    """The linear layers of a block: name, shape (out, in), and how it is pruned."""
    width = HEADS * HEAD_DIM
    return [
        (f"layer.{layer}.query", (width, HIDDEN), heads(0)),
        (f"layer.{layer}.output", (HIDDEN, width), heads(1)),
        (f"layer.{layer}.up", (CHANNELS, HIDDEN), channels(0)),
        (f"layer.{layer}.down", (HIDDEN, CHANNELS), channels(1)),
    ]


def tensors() -> tuple[TensorSpec, ...]:
    out = [TensorSpec(name="embedding", shape=(10, HIDDEN), dtype="float32", layer=None)]
    for layer in range(LAYERS):
        for name, shape, prune in linears(layer):
            out.append(TensorSpec(name=f"{name}.weight", shape=shape, dtype="float32", layer=layer, prune=(prune,)))
        out.append(
            TensorSpec(
                name=f"layer.{layer}.up.bias", shape=(CHANNELS,), dtype="float16", layer=layer, prune=(channels(0),)
            )
        )
    return tuple(out)


def targets() -> tuple[TargetSpec, ...]:
    out = [TargetSpec(module="mixer", layer=0, in_features=HIDDEN, out_features=HIDDEN)]  # never pruned
    for layer in range(LAYERS):
        for name, (num_out, num_in), prune in linears(layer):
            out.append(
                TargetSpec(
                    module=name,
                    layer=layer,
                    in_features=num_in,
                    out_features=num_out,
                    in_prune=prune if prune.axis == 1 else None,
                    out_prune=prune if prune.axis == 0 else None,
                )
            )
    return tuple(out)


def manifest(files: dict[str, FileRef] | None = None, *, has_bias: bool = False) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        family="bert",
        task="text-classification",
        model_name="tiny",
        num_layers=LAYERS,
        block_prefixes=tuple(f"layer.{layer}." for layer in range(LAYERS)),
        word_embedding="embedding",
        post_norm=False,
        hidden_size=HIDDEN,
        labels=("negative", "positive"),
        text=TextSpec(pad_token_id=0, eos_token_id=None, append_eos=False, max_length=16, vocab_size=10),
        groups=tuple(
            GroupSpec(layer=layer, group=group, num_units=num_units)
            for layer in range(LAYERS)
            for group, num_units in (("heads", HEADS), ("channels", CHANNELS))
        ),
        tensors=tensors(),
        targets=targets(),
        dense=(
            DenseSpec(name="classifier.weight", shape=(2, HIDDEN)),
            *([DenseSpec(name="classifier.bias", shape=(2,))] if has_bias else []),
        ),
        files=files or {},
        producer={},
    )


def write_artifact(folder: Path, *, has_bias: bool = False) -> Artifact:
    """An artifact without graphs in ``folder/<digest>/``: all that a coordinator needs that does not evaluate."""
    aside = folder / "aside"
    aside.mkdir(parents=True)
    rng = np.random.default_rng(0)
    save_file({t.name: rng.normal(size=t.shape).astype(t.dtype) for t in tensors()}, aside / names.BASE_FILE)
    head: Adapter = {"classifier.weight": np.ones((2, HIDDEN), np.float32)}
    if has_bias:
        head["classifier.bias"] = np.zeros(2, np.float32)
    save_file(head, aside / names.INITIAL_FILE)
    files = {}
    for path in sorted(aside.iterdir()):
        data = path.read_bytes()
        files[path.name] = FileRef(digest=digest_of(data), size_bytes=len(data), on_device=True)
    encoded = encode_description(manifest(files, has_bias=has_bias))
    (aside / names.MANIFEST_FILE).write_bytes(encoded)
    directory = folder / digest_of(encoded)
    aside.rename(directory)
    return Artifact.open(directory)


def importance(seed: int = 0) -> dict[tuple[int, str], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {(g.layer, g.group): rng.uniform(size=g.num_units).astype(np.float32) for g in manifest().groups}


def adapter(plan: Plan, rank: int, rng: np.random.Generator) -> Adapter:
    """Random factors for a plan and a rank."""
    layout = AdapterLayout.of(manifest(), plan, rank)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes.items()}


def capabilities() -> Capabilities:
    return Capabilities(
        architecture="x86_64",
        operating_system="Linux",
        num_cores=2,
        num_threads=1,
        memory_bytes=1 << 30,
        memory_limit_bytes=1 << 29,
        versions={},
        matmul_gflops=1.0,
        memory_copy_gb_s=1.0,
    )
