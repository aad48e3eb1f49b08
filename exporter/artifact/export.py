"""A pretrained model becomes an artifact: graphs that serve every arm, base weights, tokenizer, manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from edge_runtime.formats import names
from edge_runtime.formats.manifest import BaseDtype
from exporter.artifact import files as artifact
from exporter.artifact.base import Base
from exporter.artifact.compose import evaluation_graph, training_graph
from exporter.artifact.optimizer import optimizer_graph
from exporter.artifact.staged import stage_graphs
from exporter.artifact.stages import Stages, trace_stages
from exporter.output import check_output, written_aside
from models.loading import load_model

if TYPE_CHECKING:
    import onnx

    from edge_runtime.formats.manifest import Manifest, Task
    from models.family import Family


NOTE: Final = "note: "
"""Prefix of a progress line that the user should see even if the export is not watched."""


def _silent(line: str) -> None:
    del line


def export_model(  # noqa: PLR0913 - all but three are options of the command
    model: str | Path,
    task: Task,
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    num_labels: int | None = None,
    new_head: bool = False,
    seed: int = 0,
    targets: Sequence[str] = (),
    top_blocks: int | None = None,
    base_dtype: BaseDtype = "stored",
    force: bool = False,
    progress: Callable[[str], None] = _silent,
) -> tuple[Manifest, str]:
    """Export a model. The same model, options and package versions give the same bytes.

    Args:
        model: local directory, or id on the Hugging Face hub.
        task: of the tuning.
        out: directory of the artifact; it appears whole or not at all.
        labels: class names, for text-classification.
        num_labels: their number, where they have no names.
        new_head: make a new classifier, even where the checkpoint has one.
        seed: of weights that the checkpoint lacks.
        targets: linear layers that get LoRA factors, by the ends of their names; none = all.
        top_blocks: of so many blocks, counted from the head; None = all.
        base_dtype: how frozen weights are stored; see :class:`exporter.artifact.base.Base`.
        force: replace an artifact that is there.
        progress: takes a line about each step.

    Returns:
        The manifest and the artifact's digest.

    Raises:
        ModelError: see :func:`models.loading.load_model`.
        ModelUnsupportedError: a target is not a linear layer, or there are fewer blocks.
        ExportError: the output directory is taken, or a stage cannot be expressed in ONNX.
        DiskFullError: there is no space.
    """
    check_output(out := Path(out), artifact.ARTIFACT, force=force)
    progress(f"loading {Path(model).name}")
    loaded = load_model(model, task, labels=labels, num_labels=num_labels, seed=seed, new_head=new_head)
    loaded.family.choose_targets(targets, top_blocks=top_blocks)
    for note in loaded.notes:
        progress(f"{NOTE}{note}")
    base = Base(loaded, base_dtype)
    manifest = artifact.describe(loaded, base)
    progress(f"tracing the stages of {manifest.family}")
    stages = trace_stages(loaded.family)
    progress(f"composing graphs of {manifest.num_layers} layers")
    graphs = _graphs(loaded.family, manifest, stages)
    progress(f"writing {out}")
    with written_aside(out, artifact.ARTIFACT) as directory:
        for name, graph in graphs.items():
            artifact.write_graph(directory, name, graph)
        artifact.write_model_files(directory, loaded, base)
        manifest = structs.replace(manifest, files=artifact.list_files(directory))
        digest = artifact.write_manifest(directory, manifest)
    return manifest, digest


def _graphs(family: Family, manifest: Manifest, stages: Stages) -> dict[str, onnx.ModelProto]:
    """All graphs of an artifact, by file."""
    return {
        names.TRAINING_GRAPH: training_graph(family, manifest, stages),
        names.EVALUATION_GRAPH: evaluation_graph(family, manifest, stages),
        names.OPTIMIZER_GRAPH: optimizer_graph(),
        **stage_graphs(family, manifest, stages),
    }
