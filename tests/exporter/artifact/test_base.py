"""Frozen weights in other types: what the blob holds, and that everything downstream reads the same weights from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch
from edge_runtime.engine.modes import graphs_of
from edge_runtime.engine.slicing import shrink_weights, slice_weights
from edge_runtime.formats import names, ranking
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import BaseDtype, Task
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.quantization import Kind, quantize
from exporter.artifact.export import export_model
from exporter.artifact.stages import Stages, trace_stages
from exporter.compact.merge import base_model
from models.family import Family
from tests.conftest import save_bert, save_llama

QUANTIZED: list[BaseDtype] = ["int8", "nf4"]


Export = Callable[[BaseDtype], Artifact]


@pytest.fixture(scope="module", params=["bert", "llama"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a model whose hidden size nf4 divides and whose channels it does not; each way of storing it once.

    Stages follow from the family alone, so all of them have those that were traced for the first.
    """
    directory = tmp_path_factory.mktemp("source")
    is_encoder = request.param == "bert"
    model = (save_bert if is_encoder else save_llama)(directory / "model", hidden_size=64)
    task: Task = "text-classification" if is_encoder else "causal-lm"

    traced: list[Stages] = []

    def trace(family: Family) -> Stages:
        traced[:] = traced or [trace_stages(family)]
        return traced[0]

    def of(base: BaseDtype) -> Artifact:
        out = directory / base
        if not out.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("exporter.artifact.export.trace_stages", trace)
                export_model(model, task, out, num_labels=3 if is_encoder else None, base_dtype=base)
        return Artifact.open(out)

    return of


def test_float_types(export: Export) -> None:
    stored, half = export("stored"), export("float16")
    assert {spec.dtype for spec in stored.manifest.tensors} == {"float32"}
    assert {spec.dtype for spec in half.manifest.tensors} == {"float16"}
    for spec, other in zip(stored.manifest.tensors, half.manifest.tensors, strict=True):
        np.testing.assert_array_equal(half.weight(other), stored.weight(spec).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("base", QUANTIZED)
def test_matrices_are_quantised_and_vectors_are_not(export: Export, base: BaseDtype) -> None:
    stored, small = export("stored"), export(base)
    kinds = set()
    for spec, before in zip(small.manifest.tensors, stored.manifest.tensors, strict=True):
        whole = stored.weight(before)
        if len(spec.shape) != 2:
            assert spec.dtype == "float32"
            np.testing.assert_array_equal(small.weight(spec), whole)
            continue
        is_nf4 = base == "nf4" and spec.layer is not None and spec.shape[spec.block_axis] % 64 == 0
        kind: Kind = "nf4" if is_nf4 else "int8"
        assert spec.dtype == kind
        kinds.add((kind, spec.block_axis if is_nf4 else None))
        np.testing.assert_array_equal(small.weight(spec), quantize(whole, kind, spec.block_axis).float32())
    assert kinds == {("int8", None)} if base == "int8" else kinds >= {("nf4", 0), ("nf4", 1), ("int8", None)}
    sizes = [artifact.manifest.files[names.BASE_FILE].size_bytes for artifact in (small, stored)]
    assert sizes[0] < 0.45 * sizes[1]


@pytest.mark.parametrize("base", QUANTIZED)
def test_both_modes_train_on_the_same_weights(export: Export, base: BaseDtype) -> None:
    """Fused mode on float32 of the codes, staged mode on the codes, also when a plan shrinks."""
    artifact = export(base)
    manifest, rng = artifact.manifest, np.random.default_rng(0)
    importance = {(g.layer, g.group): rng.random(g.num_units).astype(np.float32) for g in manifest.groups}
    plan, smaller = (ranking.plan_at(manifest, importance, ratio) for ratio in (0.25, 0.5))
    ids = rng.integers(4, manifest.text.vocab_size, (3, 7))
    labels = ids if manifest.task == "causal-lm" else np.arange(3)
    batch = Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels)
    found = []
    for mode in ("fused", "staged"):
        graphs = graphs_of(artifact, mode, num_threads=1)
        weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
        layout = AdapterLayout.of(manifest, plan, 3)
        model, results = graphs.model(weights, layout, 1.5), []
        for now in (plan, smaller):
            if now is smaller:
                for name, value in shrink_weights(manifest, weights, plan, smaller):
                    weights.put(name, value)
                    model.reload(name)
                layout = AdapterLayout.of(manifest, now, 3)
                model.hold(layout, 1.5)
            params = np.random.default_rng(1).normal(0, 0.1, layout.num_elements).astype(np.float32)
            summed = np.empty_like(params)
            loss = model.gradient(batch, params, np.zeros_like(params), summed, batch.num_targets)
            results.append((loss, model.score(batch, params)[0], summed))
        found.append(results)
    for fused, staged in zip(*found, strict=True):
        assert staged[:2] == pytest.approx(fused[:2], rel=1e-5)
        np.testing.assert_allclose(staged[2], fused[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", QUANTIZED)
def test_a_compact_model_is_made_of_what_devices_trained_on(export: Export, base: BaseDtype) -> None:
    artifact = export(base)
    state = base_model(artifact.directory, artifact.manifest).state_dict()
    for spec in artifact.manifest.tensors:
        torch.testing.assert_close(state[spec.name], torch.tensor(artifact.weight(spec)), rtol=0, atol=0)


def test_codes_without_scales_are_refused(export: Export, tmp_path: Path) -> None:
    directory = shutil.copytree(export("int8").directory, tmp_path / "artifact")
    path = directory / names.BASE_FILE
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({n: v for n, v in tensors.items() if not n.endswith(".scales")}, path)
    broken = Artifact.open(directory, verify=False)
    with pytest.raises(Exception, match=r"\.scales' should be float32 .* got nothing; fetch it again"):
        slice_weights(broken, Plan.full(broken.manifest))
