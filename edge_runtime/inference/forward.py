"""Runs of a compact model's graph on values of onnxruntime, with translated errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.engine.errors import InsufficientMemoryError
from edge_runtime.engine.session import Graph, translate
from edge_runtime.inference.errors import CompactModelError, InferenceError
from edge_runtime.inference.scoring import Float32, Int64

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPE_IDS = "token_type_ids"  # noqa: S105 - a name
POSITION_IDS = "position_ids"
LOGITS = "logits"


def check_interface(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph that lacks an input or output, or takes more than these inputs and the optional ones.

    Raises:
        CompactModelError: names the first that differs.
    """
    optional = {TOKEN_TYPE_IDS, POSITION_IDS}
    differing = sorted((set(inputs) ^ graph.inputs) - optional) + sorted(set(outputs) - graph.outputs)
    if differing:
        msg = f"{graph.path} has other inputs or outputs than expected, for example {differing[0]!r}: make it again"
        raise CompactModelError(msg)


def run(graph: Graph, outputs: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
    """Outputs as onnxruntime values.

    Args:
        graph: the loaded graph.
        outputs: names.
        values: arrays, or onnxruntime values (which are neither converted nor copied), by input name.

    Raises:
        InsufficientMemoryError: onnxruntime could not allocate memory.
        InferenceError: onnxruntime failed for another reason.
    """
    feeds = {
        name: ort.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }
    try:
        results: list[Any] = graph.session.run_with_ort_values(list(outputs), feeds)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        translated = translate(error, f"{graph.path} failed")
        if isinstance(translated, InsufficientMemoryError):
            raise translated from error
        msg = f"{translated}; use shorter or fewer texts, or make the compact model again"
        raise InferenceError(msg) from error
    return results


class Encoder:
    """A graph exported for text-classification.

    Raises:
        CompactModelError: the graph was exported for something else.
    """

    def __init__(self, graph: Graph) -> None:
        check_interface(graph, [INPUT_IDS, ATTENTION_MASK], [LOGITS])
        self._graph = graph

    def forward(self, input_ids: Int64, attention_mask: Int64) -> Float32:
        """Logits float32 ``[batch, labels]``; both arguments int64 ``[batch, length]``.

        Raises:
            InferenceError: onnxruntime failed.
        """
        feeds: dict[str, npt.NDArray[Any]] = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if TOKEN_TYPE_IDS in self._graph.inputs:
            feeds[TOKEN_TYPE_IDS] = np.zeros_like(input_ids)
        (logits,) = run(self._graph, [LOGITS], feeds)
        out: Float32 = logits.numpy()
        return out
