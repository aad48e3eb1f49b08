"""The optimizer graph: AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) on flat vectors, after clipping by norm.

Semantics of ``torch.nn.utils.clip_grad_norm_`` and ``torch.optim.AdamW``; the graph does not depend on the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edge_runtime.formats import names
from exporter.artifact.graph import Graph

if TYPE_CHECKING:
    import onnx

_CLIP_EPSILON: Final = 1e-6
"""PyTorch's, against division by a zero norm."""

_SCALARS: Final = (
    names.GRAD_SCALE,
    names.LEARNING_RATE,
    names.WEIGHT_DECAY,
    names.MAX_GRAD_NORM,
    names.BETA1,
    names.BETA2,
    names.EPSILON,
    names.BIAS_CORRECTION1,
    names.BIAS_CORRECTION2,
)


def optimizer_graph() -> onnx.ModelProto:
    """One step of AdamW; names in :mod:`edge_runtime.formats.names`."""
    graph = Graph()
    vectors = (names.PARAMS, names.GRADS, names.EXP_AVG, names.EXP_AVG_SQ)
    for name in vectors:
        graph.input(name, np.float32, ("num_params",))
    for name in _SCALARS:
        graph.input(name, np.float32, ())
    op, one = graph.op, graph.constant(1.0, np.float32)
    scaled = op("Mul", names.GRADS, names.GRAD_SCALE)
    norm = op("ReduceL2", scaled, keepdims=0)
    coefficient = op("Div", names.MAX_GRAD_NORM, op("Add", norm, graph.constant(_CLIP_EPSILON, np.float32)))
    gradient = op("Mul", scaled, op("Min", coefficient, one))
    decay = op("Sub", one, op("Mul", names.LEARNING_RATE, names.WEIGHT_DECAY))
    # exp_avg + (1 - beta1) (gradient - exp_avg), as torch's lerp
    moved = op("Mul", op("Sub", gradient, names.EXP_AVG), op("Sub", one, names.BETA1))
    exp_avg = op("Add", names.EXP_AVG, moved)
    squared = op("Mul", op("Mul", gradient, gradient), op("Sub", one, names.BETA2))
    exp_avg_sq = op("Add", op("Mul", names.EXP_AVG_SQ, names.BETA2), squared)
    root = op("Div", op("Sqrt", exp_avg_sq), op("Sqrt", names.BIAS_CORRECTION2))
    step = op("Div", names.LEARNING_RATE, names.BIAS_CORRECTION1)
    update = op("Mul", op("Div", exp_avg, op("Add", root, names.EPSILON)), step)
    params = op("Sub", op("Mul", names.PARAMS, decay), update)
    outputs = {names.PARAMS: params, names.EXP_AVG: exp_avg, names.EXP_AVG_SQ: exp_avg_sq}
    return graph.model(
        "optimizer",
        {name + names.OUT_SUFFIX: (value, np.float32, ("num_params",)) for name, value in outputs.items()}
        | {names.GRAD_NORM: (norm, np.float32, ())},
    )
