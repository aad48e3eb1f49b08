"""Inference graphs: a pruned Hugging Face model through Optimum to ONNX, and its weights to eight bits."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.exporters.onnx import onnx_export_from_model

from edge_runtime.formats.manifest import Task
from edge_runtime.inference.description import MODEL_FILE
from exporter.compact.rows import quantize_by_row

_OPTIMUM_TASKS: Final = {"text-classification": "text-classification", "causal-lm": "text-generation-with-past"}
_QUANTIZED_OPERATORS: Final = ["MatMul", "Gather"]
_LOUD_LOGGERS: Final = ("optimum", "transformers", "root")


def export_graph(model: Any, task: Task, directory: Path) -> Path:
    """Write ``model.onnx``, ``config.json`` and, for a decoder, ``generation_config.json``.

    Optimum's own validation is left out: it would run PyTorch once more and only warn; :mod:`exporter.compact.check`
    compares on the device's code and refuses.

    Args:
        model: pruned, float32, in evaluation mode.
        task: of the model; a decoder gets inputs and outputs for its key/value cache.
        directory: an existing directory.

    Returns:
        Path of ``model.onnx``.
    """
    with quiet():
        onnx_export_from_model(model, directory, task=_OPTIMUM_TASKS[task], do_validation=False)
    path = directory / MODEL_FILE
    if not list(directory.glob(f"{MODEL_FILE}?*")):  # weights beyond 2 GB lie beside the graph, and stay there
        _share_tied_weights(path)
    return path


def quantize_int8(path: Path) -> None:
    """Replace a float32 graph by one with 8-bit weights; activations are quantised while it runs, each token by itself.

    Matrices get one scale per output channel, embeddings one per table. Seven of the eight bits are used, because x86
    processors without VNNI saturate when they add products of full 8-bit numbers.
    """
    small = path.with_suffix(".int8.onnx")
    with quiet():
        quantize_dynamic(
            path,
            small,
            op_types_to_quantize=_QUANTIZED_OPERATORS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    model = onnx.load(small)
    quantize_by_row(model)
    onnx.save(model, small)
    small.replace(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracer's and the tools' remarks, which a user can do nothing about, off the terminal."""
    loggers = [logging.getLogger(name) for name in _LOUD_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _share_tied_weights(path: Path) -> None:
    """Store a matrix once where another is its transpose (tied embeddings: the exporter writes both)."""
    model = onnx.load(path)
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"} & set(arrays)
    changed = False
    for node in list(model.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in arrays:
            continue
        matrix = arrays[node.input[1]]
        twin = next((name for name in gathered if np.array_equal(arrays[name].T, matrix)), None)
        if twin is None:
            continue
        transposed = onnx.helper.make_node("Transpose", [twin], [f"{twin}.transposed"], perm=[1, 0])
        model.graph.node.insert(0, transposed)
        entry = next(entry for entry in model.graph.initializer if entry.name == node.input[1])
        model.graph.initializer.remove(entry)
        node.input[1] = transposed.output[0]
        changed = True
    if changed:
        onnx.save(model, path)
