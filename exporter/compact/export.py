"""From a run to a compact model: adapter merged, units removed, inference graph, all that a device needs beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from edge_runtime.bounds.versioned import encode_description
from edge_runtime.formats import names
from edge_runtime.formats.plan import Plan
from edge_runtime.inference.description import (
    DESCRIPTION_FILE,
    MODEL_FILE,
    SCHEMA_VERSION,
    CompactInfo,
    file_ref,
)
from edge_runtime.system.files import write_atomically
from exporter.artifact.files import TOKENIZER_FILES
from exporter.compact.check import check_parity, logits_difference
from exporter.compact.graph import export_graph, quantize_int8
from exporter.compact.merge import merged_model
from exporter.compact.source import CompactSource, check_ratio, read_plan, read_source
from exporter.output import Kind, check_output, config_bytes, foreign_writer, written_aside
from models.registry import family_for
from models.surgery import prune_model
from models.tokenizer import TOKENIZER_CONFIG

Quantization = Literal["int8"]
COMPACT: Final = Kind("compact model", DESCRIPTION_FILE)


def compact_run(
    run_dir: str | Path,
    sparsity: float,
    out: str | Path,
    *,
    quantize: Quantization | None = None,
    adapter: Path | None = None,
    round_number: int | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CompactInfo:
    """Make a compact model from a run directory.

    Args:
        run_dir: run directory.
        sparsity: share of the units of every group to remove, in [0, 1); the measured one is in the result.
        out: directory to write; appears only when it is complete.
        quantize: ``int8`` = 8-bit weights.
        adapter: an adapter's file instead of the run's.
        round_number: round whose adapter is taken; None = the last.
        force: replace ``out`` if it exists.
        progress: called with one line for each step.

    Returns:
        The description written to ``fedspine.json``.

    Raises:
        OutputExistsError: ``out`` exists and ``force`` is not set.
        CompactInputError: the run lacks a needed file, or it is damaged.
        CompactRatioError: ``sparsity`` is out of range.
        CompactParityError: the exported graph differs from PyTorch; nothing is written.
        DiskFullError: there is no space; nothing is left behind.
    """
    run_dir, out = Path(run_dir), Path(out)
    check_ratio(sparsity)
    check_output(out, COMPACT, force=force)
    source = read_source(run_dir, adapter=adapter, round_number=round_number)
    plan = read_plan(run_dir, source.manifest, sparsity)
    return compact_source(source, plan, sparsity, out, quantize=quantize, force=force, progress=progress)


def compact_source(
    source: CompactSource,
    plan: Plan,
    pruning_ratio: float,
    out: Path,
    *,
    quantize: Quantization | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CompactInfo:
    """Make a compact model from an artifact and an adapter, under any plan that the family can deploy.

    Args:
        source: artifact and adapter.
        plan: units that stay.
        pruning_ratio: the ratio that was asked for, for the description.
        out: see :func:`compact_run`, as for the other arguments and ``Raises``.
        quantize: as there.
        force: as there.
        progress: as there.

    Raises:
        ModelUnsupportedError: a decoder's plan keeps other numbers of heads in different layers.
    """
    check_output(out, COMPACT, force=force)
    progress(f"merging the adapter of round {source.round_number} into {source.manifest.model_name}")
    model = merged_model(source)
    prune_model(model, family_for(model.config, source.manifest.task), source.manifest, plan)
    with written_aside(out, COMPACT) as directory:
        progress("exporting the inference graph")
        with foreign_writer(directory, sum(parameter.nbytes for parameter in model.parameters())):
            graph = export_graph(model, source.manifest.task, directory)
        _write_config(directory, model)
        _write_tokenizer(directory, source)
        if names.GENERATION_FILE in source.manifest.files:  # Optimum would write the generation settings of config.json
            shutil.copyfile(source.artifact_dir / names.GENERATION_FILE, directory / names.GENERATION_FILE)
        info = _describe(directory, source, plan, pruning_ratio, model, None)
        progress("comparing with PyTorch")
        difference = check_parity(directory, model)
        progress(f"logits differ by {difference:.1e} at most")
        if quantize is not None:
            with foreign_writer(directory, graph.stat().st_size):
                quantize_int8(graph)
            info = _describe(directory, source, plan, pruning_ratio, model, quantize)
            difference, largest = logits_difference(directory, model)
            progress(f"8-bit weights move a logit by {difference:.2g} at most (largest {largest:.2g})")
    return info


def _write_config(directory: Path, model: Any) -> None:
    """``config.json`` as Optimum reads it.

    Optimum 0.1 takes a decoder's cache to be ``hidden_size // num_attention_heads`` wide, which pruned heads break;
    so ``num_attention_heads`` is the number for which that gives ``head_dim``. Where ``head_dim`` does not divide
    ``hidden_size`` there is no such number, and ``hidden_size`` is that of the heads' outputs side by side.
    ``num_key_value_heads`` and ``intermediate_size`` are the pruned ones.
    """
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # a path of this machine
    config["architectures"] = [type(model).__name__]
    if head_dim := config.get("head_dim"):
        if config["hidden_size"] % head_dim:
            config["hidden_size"] = config["num_attention_heads"] * head_dim
        config["num_attention_heads"] = config["hidden_size"] // head_dim
    write_atomically(directory / names.CONFIG_FILE, config_bytes(config))


def _write_tokenizer(directory: Path, source: CompactSource) -> None:
    """The artifact's tokenizer, told the longest length, at which pipelines cut.

    For a decoder it is told too that there are no token types, which ``generate`` refuses.
    """
    for name in TOKENIZER_FILES:
        if name in source.manifest.files:
            shutil.copyfile(source.artifact_dir / name, directory / name)
    path = directory / TOKENIZER_CONFIG
    if path.exists():
        config = {**json.loads(path.read_bytes()), "model_max_length": source.manifest.text.max_length}
        if source.manifest.task == "causal-lm":
            config["model_input_names"] = ["input_ids", "attention_mask"]
        write_atomically(path, config_bytes(config))


def _describe(
    directory: Path,
    source: CompactSource,
    plan: Plan,
    pruning_ratio: float,
    model: Any,
    quantization: Quantization | None,
) -> CompactInfo:
    """Write ``fedspine.json`` for the files in the directory."""
    manifest = source.manifest
    files = {
        path.name: file_ref(path, on_device=path.name == names.TOKENIZER_FILE or path.name.startswith(MODEL_FILE))
        for path in sorted(directory.iterdir())
        if path.name != DESCRIPTION_FILE
    }
    info = CompactInfo(
        schema_version=SCHEMA_VERSION,
        task=manifest.task,
        family=manifest.family,
        model_name=manifest.model_name,
        labels=manifest.labels,
        text=manifest.text,
        max_length=manifest.text.max_length,
        pruning_ratio=pruning_ratio,
        sparsity=plan.sparsity(manifest),
        quantization=quantization,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        artifact_digest=source.digest,
        round_number=source.round_number,
        plan=plan.packed,
        files=files,
    )
    write_atomically(directory / DESCRIPTION_FILE, encode_description(info))
    return info
